"""Tell which text positions of a pipeline's prompts hold the prompt (BOS, words and EOS), and which hold padding.

Hidden states longer than the tokenizer's length consist of windows of that length. Each window has its own BOS, words,
EOS and padding, as compel and other tools for long prompts make them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from audit.errors import UsageError

# Shapes: P prompts, W windows, K text positions, D text width.

Keep = Literal["eos", "words", "all"]
Tokens = int | Sequence[int | Sequence[int]]
ALIKE = 0.01  # relative difference below which two encodings are of the same prompt (half precision, other batch size)
COUNTS = "BOS, words and EOS of each prompt; a list of numbers per prompt for prompts of several windows"


def windows(length: int, window: int) -> int:
    """Count the windows in hidden states of `length` positions.

    Raises:
        UsageError: They are longer than a window but do not consist of whole windows.
    """
    if length > window and length % window:
        what = f"the hidden states of the prompt have {length} positions, which are not whole windows of {window}"
        raise UsageError(what, hint=f"Encode long prompts in windows of {window} positions, each with BOS and EOS.")
    return max(1, length // window)


def visible_positions(counts_PW: Tensor, length: int, window: int) -> Tensor:
    """Tell which text positions lie within the first `counts_PW` positions of their window.

    Args:
        counts_PW: Number of visible positions per prompt and window.
        length: Number of text positions.
        window: Number of text positions per window.

    Returns:
        Which positions are visible: [P, K] bool.
    """
    position_K = torch.arange(length, device=counts_PW.device)
    return position_K % window < counts_PW[:, position_K // window]


def prompt_counts(pipeline: Any, call: dict[str, Any], given: Tokens | None, length: int, window: int) -> Tensor:
    """Count the tokens of each prompt in each window, with BOS and EOS.

    Args:
        pipeline: The pipeline, whose tokenizer is used.
        call: Arguments of its `encode_prompt`.
        given: The counts, if the user gave them.
        length: Number of text positions of the encoded prompts.
        window: Number of text positions per window.

    Returns:
        The counts: [P, W].

    Raises:
        UsageError: The counts are needed but not given, or do not fit the prompts.
    """
    embeds = call["prompt_embeds"]
    prompts = len(listed(call["prompt"])) if embeds is None else len(embeds)
    if given is not None:
        return _fitting(given, "prompt_tokens", prompts, length, window)
    if embeds is None:
        return torch.tensor(_tokens(pipeline, listed(call["prompt"])))[:, None]
    what = "the call passes prompt_embeds, but it is unknown how many of their positions belong to the prompt"
    raise UsageError(what, hint=f'Give prompt_tokens= ({COUNTS}), or keep="all".')


def negative_counts(pipeline: Any, call: dict[str, Any], given: Tokens | None, length: int, window: int) -> Tensor:
    """Count the tokens of each negative prompt in each window.

    The counts are zero if there is no negative prompt, or only the empty one.

    Args:
        pipeline: As for `prompt_counts`.
        call: As for `prompt_counts`.
        given: As for `prompt_counts`.
        length: As for `prompt_counts`.
        window: As for `prompt_counts`.

    Returns:
        The counts: [P, W], or [1, W] if all prompts share one negative prompt or have none.

    Raises:
        UsageError: As for `prompt_counts`.
    """
    words, embeds = call["negative_prompt"], call["negative_prompt_embeds"]
    none_1W = torch.zeros(1, windows(length, window), dtype=torch.long)
    if words is None and embeds is None:
        return none_1W
    if given is not None:
        prompts = len(listed(words)) if embeds is None else len(embeds)
        return _fitting(given, "negative_prompt_tokens", prompts, length, window)
    if embeds is None:
        return torch.tensor(_tokens(pipeline, listed(words)))[:, None]
    if _is_empty_prompt(pipeline, call, embeds):
        return none_1W
    what = "the call passes negative_prompt_embeds, but it is unknown how many of their positions belong to the prompt"
    raise UsageError(what, hint=f'Give negative_prompt_tokens= ({COUNTS}), pass negative_prompt=, or give keep="all".')


def listed(prompt: str | Sequence[str]) -> list[str]:
    """Return one or several prompts as a list."""
    return [prompt] if isinstance(prompt, str) else list(prompt)


def _fitting(given: Tokens, name: str, prompts: int, length: int, window: int) -> Tensor:
    count = windows(length, window)
    per_prompt = [given] * prompts if isinstance(given, int) else list(given)
    counts = [[one] if isinstance(one, int) else list(one) for one in per_prompt]
    longest = min(length, window)
    fit = all(len(one) == count and all(2 <= tokens <= longest for tokens in one) for one in counts)
    if len(counts) != prompts or not fit:
        where = f"{prompts} prompts of {length} positions" + (f" in {count} windows" if count > 1 else "")
        hint = f"Give one number from 2 to {longest} per prompt" + (" and window: [[77, 12]]." if count > 1 else ".")
        raise UsageError(f"{name} is {given} for {where}", hint=hint)
    return torch.tensor(counts)


def _tokens(pipeline: Any, prompts: list[str]) -> list[int]:
    """Count the tokens of each prompt, with BOS and EOS, as the pipeline truncates them."""
    tokenizer = pipeline.tokenizer
    if hasattr(pipeline, "maybe_convert_prompt"):  # a textual inversion may stand for several tokens
        prompts = pipeline.maybe_convert_prompt(prompts, tokenizer)
    return [len(ids) for ids in tokenizer(prompts, max_length=tokenizer.model_max_length, truncation=True).input_ids]


def _is_empty_prompt(pipeline: Any, call: dict[str, Any], embeds_PKD: Tensor) -> bool:
    """Tell whether embeddings equal the pipeline's own encoding of the empty prompt, in one window or several."""
    empty_1KD = pipeline.encode_prompt(
        prompt="", device=call["device"], num_images_per_prompt=1, do_classifier_free_guidance=False
    )[0].float()
    times = windows(embeds_PKD.shape[1], empty_1KD.shape[1])
    empty_1KD = empty_1KD.repeat(1, times, 1)[:, : embeds_PKD.shape[1]]
    difference_PKD = embeds_PKD.to(empty_1KD) - empty_1KD
    return bool((difference_PKD.norm(dim=(1, 2)) <= ALIKE * empty_1KD.norm()).all())
