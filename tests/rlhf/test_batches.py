"""Ragged ids to padded tensors: masks from lengths."""

import pytest
import torch

from rlhf.text.batches import pad_left, pad_right


def test_prompts_are_padded_left_and_responses_right():
    ids, mask = pad_left([[5], [6, 7, 8]], pad_id=0)
    assert ids.tolist() == [[0, 0, 5], [6, 7, 8]]
    assert mask.tolist() == [[False, False, True], [True, True, True]]
    ids, mask = pad_right([[5], [6, 7, 8]], pad_id=0)
    assert ids.tolist() == [[5, 0, 0], [6, 7, 8]]
    assert mask.tolist() == [[True, False, False], [True, True, True]]


@pytest.mark.parametrize("pad", [pad_left, pad_right])
def test_masks_come_from_lengths_even_when_eos_is_the_pad_token(pad):
    eos = 1
    _, mask = pad([[4, eos], [eos, 4, 4, eos]], pad_id=eos)
    assert mask.sum(-1).tolist() == [2, 4]
    assert mask.dtype is torch.bool
