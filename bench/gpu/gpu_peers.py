"""Optimizers that torch has no fused kernel for, by its horizontally fused foreach functions, as apex lays them out."""

import torch


class Lion:
    """Chen et al. 2023, algorithm 2."""

    def __init__(self, tensors, lr, betas):
        self.tensors, self.lr, self.betas = tensors, lr, betas
        self.momenta = [torch.zeros_like(tensor) for tensor in tensors]

    @torch.no_grad()
    def step(self):
        grads = [tensor.grad for tensor in self.tensors]
        updates = torch._foreach_mul(self.momenta, self.betas[0])
        torch._foreach_add_(updates, grads, alpha=1 - self.betas[0])
        torch._foreach_sign_(updates)
        torch._foreach_add_(self.tensors, updates, alpha=-self.lr)
        torch._foreach_lerp_(self.momenta, grads, 1 - self.betas[1])


class Lamb:
    """You et al. 2019, algorithm 2, without decay. Norms are over `pieces(tensors)`, views of the tensors."""

    def __init__(self, tensors, pieces, lr, betas, eps):
        self.tensors, self.pieces, self.lr, self.betas, self.eps = tensors, pieces, lr, betas, eps
        self.momenta = [torch.zeros_like(tensor) for tensor in tensors]
        self.velocities = [torch.zeros_like(tensor) for tensor in tensors]
        self.steps = 0

    @torch.no_grad()
    def step(self):
        self.steps += 1
        grads = [tensor.grad for tensor in self.tensors]
        torch._foreach_lerp_(self.momenta, grads, 1 - self.betas[0])
        torch._foreach_mul_(self.velocities, self.betas[1])
        torch._foreach_addcmul_(self.velocities, grads, grads, value=1 - self.betas[1])
        updates = self._updates()
        pieces, moves = self.pieces(self.tensors), self.pieces(updates)
        ratios = _ratios(torch._foreach_norm(pieces), torch._foreach_norm(moves))
        torch._foreach_mul_(moves, ratios)
        torch._foreach_add_(self.tensors, updates, alpha=-self.lr)

    def _updates(self):
        roots = torch._foreach_div(self.velocities, 1 - self.betas[1] ** self.steps)
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, self.eps)
        updates = torch._foreach_div(self.momenta, 1 - self.betas[0] ** self.steps)
        torch._foreach_div_(updates, roots)
        return updates


def _ratios(params, updates):
    """The trust ratios of all pieces, on the device: 1 where a norm is zero."""
    over, under = torch.stack(params), torch.stack(updates)
    return list(torch.where((over > 0) & (under > 0), over / under, 1.0).unbind())
