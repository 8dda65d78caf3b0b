"""Define what a noise schedule is, whatever a network predicts and however it is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

# Shapes: B rows; C, H and W of the latent.


class Schedule(Protocol):
    """The noise levels of a run or of a screen, from the noisiest one on, and what follows from a network's outputs.

    A "position" is an index into `timesteps`.

    Attributes:
        timesteps: What the network is given as the time, at each position.
        first_informative: The first position at which the predicted noise depends on the caption.
    """

    @property
    def timesteps(self) -> Sequence[float]: ...  # noqa: D102
    @property
    def first_informative(self) -> int: ...  # noqa: D102

    def alpha(self, position: int) -> float:
        """Return the share of the signal in the power of the input, SNR / (1 + SNR): the cumulative alpha of DDPM."""

    def noisy(self, noise_BCHW: Tensor, position: int) -> Tensor:
        """Scale noise of variance 1 to the variance of the network's input."""

    def step(self, output_BCHW: Tensor, position: int, latents_BCHW: Tensor) -> Tensor:
        """Return the latents of the next position.

        Args:
            output_BCHW: Output of the network, after guidance.
            position: Position of the forward.
            latents_BCHW: Input of the network.
        """

    def to_epsilon(self, output_BCHW: Tensor, latents_BCHW: Tensor, position: int) -> Tensor:
        """Convert an output to the predicted noise.

        Args:
            output_BCHW: Output of the network.
            latents_BCHW: Input of the network.
            position: Position of the forward.
        """

    def to_original(self, output_BCHW: Tensor, latents_BCHW: Tensor, position: int) -> Tensor:
        """Convert an output to the predicted image, in float64.

        Args:
            output_BCHW: Output of the network.
            latents_BCHW: Input of the network.
            position: Position of the forward.
        """

    def response(self, conditional_BCHW: Tensor, unconditional_BCHW: Tensor, position: int) -> Tensor:
        """Compute `eps(c) - eps(∅)` from two outputs on the same input.

        Args:
            conditional_BCHW: Output of the network with the caption.
            unconditional_BCHW: Output of the network without it.
            position: Position of both forwards.
        """


def guide(unconditional_BCHW: Tensor, conditional_BCHW: Tensor, scale: float) -> Tensor:
    """Apply classifier-free guidance (arXiv 2207.12598, equation 6).

    Args:
        unconditional_BCHW: Output of the network with the empty prompt.
        conditional_BCHW: Output of the network with the caption.
        scale: Guidance scale.

    Returns:
        The guided output: [B, C, H, W].
    """
    return unconditional_BCHW + scale * (conditional_BCHW - unconditional_BCHW)
