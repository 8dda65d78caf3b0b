"""Define what the training of a model needs to know of its family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from diffusers import AutoencoderKL
from torch import Generator, Tensor, device, nn
from transformers import PreTrainedTokenizerBase

from benchmarks.planted import denoiser

# Shapes: B rows of a batch; C, H and W of the latent.

T = TypeVar("T", bound=PreTrainedTokenizerBase)


@dataclass(frozen=True)
class Texts:
    """What the text encoders of a model are made from.

    Attributes:
        pictures_NCHW: Pictures that are not planted, uint8 [N, 3, 64, 64].
        captions: Their captions.
        trained: The captions that the model is trained on; the first one is empty.
        checkpoints: Folder of the states of training.
        seed: The seed.
        steps: Steps of contrastive training.
    """

    pictures_NCHW: Tensor
    captions: list[str]
    trained: list[str]
    checkpoints: Path
    seed: int
    steps: int


def kept(tokenizer: type[T], make: Callable[[list[str]], T], texts: Texts) -> T:
    """Make a tokenizer of the captions, or load the one that an interrupted training made.

    Pairs of letters that are equally frequent get their ids in any order, which differs between processes.

    Args:
        tokenizer: Its class.
        make: Makes it.
        texts: The captions, and where to keep it.
    """
    folder = texts.checkpoints / "tokenizer"
    if not folder.exists():
        make(texts.captions).save_pretrained(folder)
    found: T = tokenizer.from_pretrained(folder)
    return found


class Family(ABC):
    """The networks of a model, made from `Texts` and then trained.

    Attributes:
        network: The network that is trained.
        slow: Weights of the text encoder that are trained at a tenth of the rate.
    """

    network: nn.Module
    slow: Sequence[nn.Parameter] = ()

    @abstractmethod
    def __init__(self, texts: Texts) -> None: ...

    def to(self, place: device) -> None:
        """Move what `predict` uses to a device. Text encoders that have done their work stay where they are.

        Args:
            place: The device.
        """
        for name, value in vars(self).items():
            if isinstance(value, nn.Module | Tensor):
                setattr(self, name, value.to(place))

    @abstractmethod
    def predict(self, noisy_BCHW: Tensor, time_B: Tensor, text_B: Tensor) -> Tensor:
        """Run the network.

        Args:
            noisy_BCHW: Noisy latents.
            time_B: What the network is given as the time.
            text_B: Which of `Texts.trained` it is given.
        """

    def losses(self, latents_BCHW: Tensor, text_B: Tensor, generator: Generator) -> Tensor:
        """Draw noise and noise levels, and return the losses [B] of a training step, by default of v-prediction.

        Args:
            latents_BCHW: The scaled latents.
            text_B: Which of `Texts.trained` each latent is trained with.
            generator: The random generator.
        """
        return denoiser.drawn_losses(partial(self.predict, text_B=text_B), latents_BCHW, generator)

    @abstractmethod
    def save(self, folder: Path, vae: AutoencoderKL) -> None:
        """Save the pipeline of the family.

        Args:
            folder: Where to save it.
            vae: The autoencoder.
        """
