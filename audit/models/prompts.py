"""Tell which text positions of a pipeline's prompts hold the prompt (BOS, words and EOS), and which hold padding.

Hidden states consist of windows. Each window has its own words, EOS and padding, and its own BOS if its tokenizer has
one: Stable Diffusion 3 has a window of CLIP and one of T5, and compel and other tools make several windows of CLIP of a
long prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from audit.errors import UsageError

# Shapes: P prompts, W windows, K text positions, D text width.

Keep = Literal["eos", "words", "all"]
Tokens = int | Sequence[int | Sequence[int]]
ALIKE = 0.01  # relative difference below which two encodings are of the same prompt (half precision, other batch size)
COUNTS = "BOS, words and EOS of each prompt; a list of numbers per prompt for prompts of several windows"


@dataclass(frozen=True)
class Window:
    """A stretch of text positions with words, END and padding of its own, and with BOS if its tokenizer has one.

    Attributes:
        tokenizer: The tokenizer of its prompt; None if it holds no prompt.
        length: Number of positions.
    """

    tokenizer: Any
    length: int

    @property
    def least(self) -> int:
        """Number of tokens of the empty prompt."""
        return 0 if self.tokenizer is None else len(self.tokenizer("").input_ids)

    @property
    def has_bos(self) -> bool:
        """Whether BOS comes first."""
        return self.tokenizer is not None and has_bos(self.tokenizer)


def has_bos(tokenizer: Any) -> bool:
    """Tell whether a tokenizer puts BOS first."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("").input_ids[:1] == [bos]


def has_end(tokenizer: Any) -> bool:
    """Tell whether a tokenizer puts END behind the prompt."""
    end = tokenizer.eos_token_id
    return end is not None and tokenizer("").input_ids[-1:] == [end]


def whole_windows(length: int, window: int) -> int:
    """Count the windows in hidden states of `length` positions.

    Raises:
        UsageError: They are longer than a window but do not consist of whole windows.
    """
    if length > window and length % window:
        what = f"the hidden states of the prompt have {length} positions, which are not whole windows of {window}"
        raise UsageError(what, hint=f"Encode long prompts in windows of {window} positions, each with BOS and EOS.")
    return max(1, length // window)


def visible_positions(counts_PW: Tensor, windows: Sequence[Window]) -> Tensor:
    """Tell which text positions lie within the first `counts_PW` positions of their window.

    Args:
        counts_PW: Number of visible positions per prompt and window.
        windows: The windows.

    Returns:
        Which positions are visible: [P, K] bool.
    """
    parts = zip(windows, counts_PW.unbind(1), strict=True)
    return torch.cat([torch.arange(window.length) < count_P[:, None] for window, count_P in parts], dim=1)


def prompt_counts(pipeline: Any, call: dict[str, Any], given: Tokens | None, windows: Sequence[Window]) -> Tensor:
    """Count the tokens of each prompt in each window, with BOS and EOS.

    Args:
        pipeline: The pipeline.
        call: Arguments of its `encode_prompt`.
        given: The counts, if the user gave them.
        windows: The windows of the encoded prompts.

    Returns:
        The counts: [P, W].

    Raises:
        UsageError: The counts are needed but not given, or do not fit the prompts.
    """
    embeds = call["prompt_embeds"]
    prompts = len(listed(call["prompt"])) if embeds is None else len(embeds)
    if given is not None:
        return _fitting(given, "prompt_tokens", prompts, windows)
    if embeds is None:
        return _counted(pipeline, listed(call["prompt"]), windows)
    what = "the call passes prompt_embeds, but it is unknown how many of their positions belong to the prompt"
    raise UsageError(what, hint=f'Give prompt_tokens= ({COUNTS}), or keep="all".')


def negative_counts(
    pipeline: Any,
    call: dict[str, Any],
    given: Tokens | None,
    windows: Sequence[Window],
    empty_1KD: Callable[[], Tensor],
) -> Tensor:
    """Count the tokens of each negative prompt in each window.

    The counts are zero if there is no negative prompt, or only the empty one.

    Args:
        pipeline: As for `prompt_counts`.
        call: As for `prompt_counts`.
        given: As for `prompt_counts`.
        windows: As for `prompt_counts`.
        empty_1KD: Encodes the empty prompt.

    Returns:
        The counts: [P, W], or [1, W] if all prompts share one negative prompt or have none.

    Raises:
        UsageError: As for `prompt_counts`.
    """
    words, embeds = call["negative_prompt"], call["negative_prompt_embeds"]
    none_1W = torch.zeros(1, len(windows), dtype=torch.long)
    if words is None and embeds is None:
        return none_1W
    if given is not None:
        prompts = len(listed(words)) if embeds is None else len(embeds)
        return _fitting(given, "negative_prompt_tokens", prompts, windows)
    if embeds is None:
        return _counted(pipeline, listed(words), windows)
    if _alike(embeds, empty_1KD()):
        return none_1W
    what = "the call passes negative_prompt_embeds, but it is unknown how many of their positions belong to the prompt"
    raise UsageError(what, hint=f'Give negative_prompt_tokens= ({COUNTS}), pass negative_prompt=, or give keep="all".')


def listed(prompt: str | Sequence[str]) -> list[str]:
    """Return one or several prompts as a list."""
    return [prompt] if isinstance(prompt, str) else list(prompt)


def _fitting(given: Tokens, name: str, prompts: int, windows: Sequence[Window]) -> Tensor:
    per_prompt = [given] * prompts if isinstance(given, int) else list(given)
    counts = [[one] if isinstance(one, int) else list(one) for one in per_prompt]
    fit = all(
        len(one) == len(windows)
        and all(window.least <= count <= window.length for window, count in zip(windows, one, strict=True))
        for one in counts
    )
    if len(counts) != prompts or not fit:
        length, several = sum(window.length for window in windows), len(windows) > 1
        where = f"{prompts} prompts of {length} positions" + (f" in {len(windows)} windows" if several else "")
        ranges = " and ".join(dict.fromkeys(f"from {window.least} to {window.length}" for window in windows))
        hint = f"Give one number {ranges} per prompt" + (" and window: [[77, 12]]." if several else ".")
        raise UsageError(f"{name} is {given} for {where}", hint=hint)
    return torch.tensor(counts)


def _counted(pipeline: Any, prompts: list[str], windows: Sequence[Window]) -> Tensor:
    """Count the tokens of each prompt in each window, with BOS and EOS, as the pipeline truncates them: [P, W]."""
    return torch.tensor([_tokens(pipeline, prompts, window) for window in windows]).T


def _tokens(pipeline: Any, prompts: list[str], window: Window) -> list[int]:
    if window.tokenizer is None:
        return [0] * len(prompts)
    if hasattr(pipeline, "maybe_convert_prompt"):  # a textual inversion may stand for several tokens
        prompts = pipeline.maybe_convert_prompt(prompts, window.tokenizer)
    return [len(ids) for ids in window.tokenizer(prompts, max_length=window.length, truncation=True).input_ids]


def _alike(embeds_PKD: Tensor, empty_1KD: Tensor) -> bool:
    """Tell whether embeddings equal those of the empty prompt."""
    empty_1KD = empty_1KD.float()
    difference_PKD = embeds_PKD.to(empty_1KD) - empty_1KD
    return bool((difference_PKD.norm(dim=(1, 2)) <= ALIKE * empty_1KD.norm()).all())
