"""How an optimizer's steps are done: on the host, or on a GPU."""
