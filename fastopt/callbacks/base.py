"""What callbacks have in common: hooks, and which optimizers they are about."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

Logs = MutableMapping[str, Any] | None


class Callback:
    """All hooks, doing nothing. A loop may call each of them on every callback it has.

    Keras's ``fit`` hands no optimizer over, and is refused: it takes the callbacks of the same names of
    ``keras.callbacks``, which work with the optimizers of `fastopt.keras`.
    """

    async_safe = True  # or Keras looks for its own hooks first, and fails without a word about why

    def set_params(self, params: Any) -> None:
        """Refuse Keras's ``fit``, which calls this first.

        Raises
        ------
        TypeError
            Always.
        """
        raise TypeError(
            f"{type(self).__name__} of fastopt is for training loops of your own: in Keras's fit use "
            "that of keras.callbacks, which works with the optimizers of fastopt.keras"
        )

    set_model = set_params

    def on_train_begin(self, logs: Logs, optimizer: Any) -> None:
        """Before the first epoch."""

    def on_epoch_begin(self, epoch: int, logs: Logs, optimizer: Any) -> None:
        """Before the first step of an epoch; ``epoch`` counts from 0."""

    def on_epoch_end(self, epoch: int, logs: Logs, optimizer: Any) -> None:
        """After an epoch and its evaluation; ``logs`` hold its metrics and may be added to."""

    def on_test_begin(self, logs: Logs, optimizer: Any) -> None:
        """Before an evaluation."""

    def on_test_end(self, logs: Logs, optimizer: Any) -> None:
        """After an evaluation."""

    def on_predict_begin(self, logs: Logs, optimizer: Any) -> None:
        """Before a prediction."""

    def on_predict_end(self, logs: Logs, optimizer: Any) -> None:
        """After a prediction."""

    def on_train_end(self, logs: Logs, optimizer: Any) -> None:
        """After the last epoch."""


class RateCallback(Callback):
    """Base of what reads and writes learning rates. The releases of Keras differ in the names below."""

    rate_name = "learning_rate"
    """The optimizer's attribute that is written."""

    log_name = "learning_rate"
    """The key that the rate is logged under."""

    epoch_format = "Epoch {}"

    verbose: int

    def _read(self, optimizer: Any) -> float:
        if not hasattr(optimizer, self.rate_name):
            raise ValueError(
                f'Optimizer must have a "{self.rate_name}" attribute, and {type(optimizer).__name__} has none.'
            )
        return float(getattr(optimizer, self.rate_name))

    def _write(self, optimizer: Any, rate: float) -> None:
        setattr(optimizer, self.rate_name, float(rate))

    def _logs_with_rates(self, logs: Logs, optimizer: Any) -> MutableMapping[str, Any]:
        logs = {} if logs is None else logs
        for name, member in members(optimizer):
            logs[f"{self.log_name}_{name}" if name else self.log_name] = self._read(member)
        return logs

    def _tell(self, epoch: int, verb: str, name: str, rate: float) -> None:
        if self.verbose > 0:
            whose = f"{name} " if name else ""
            print(f"\n{self.epoch_format.format(epoch + 1)}: {verb} {whose}learning rate to {rate}.")


def members(optimizer: Any) -> list[tuple[str, Any]]:
    """The optimizer, without a name, or those it consists of with theirs."""
    if hasattr(optimizer, "optimizers"):
        return [(member.name, member) for member in optimizer.optimizers]
    return [("", optimizer)]
