import numpy as np
import pytest
import torch
from torch_twins import random_tokens, twin

from jaxlab.errors import InputError
from jaxlab.models.perplexity import Evaluation, evaluate, windows


def test_windows_are_consecutive_and_the_tail_is_dropped():
    np.testing.assert_array_equal(windows(np.arange(11), 4), [[0, 1, 2, 3], [4, 5, 6, 7]])


def test_windows_with_a_first_token_hold_one_token_of_text_less():
    np.testing.assert_array_equal(windows(np.arange(8), 4, bos_id=9), [[9, 0, 1, 2], [9, 3, 4, 5]])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_perplexity_equals_the_loss_of_torch_in_every_batch_size(batch_size):
    model, params, cfg = twin("llama")
    cut = windows(random_tokens((58,)), 11)
    seen = []
    found = evaluate(params, cfg, cut, batch_size=batch_size, progress=lambda *update: seen.append(update))
    labels = torch.tensor(cut, dtype=torch.long)
    with torch.no_grad():
        losses = [model(row[None], labels=row[None]).loss.item() for row in labels]
    assert found.nll.shape == (5, 10)
    np.testing.assert_allclose(found.window_nll, losses, atol=1e-4)
    assert found.ppl == pytest.approx(np.exp(np.mean(losses)), rel=1e-4)
    assert [done for done, _, _ in seen] == [min(5, n) for n in range(batch_size, 5 + batch_size, batch_size)]
    assert seen[-1] == (5, 5, found.ppl)


def test_bits_per_byte_count_all_bits_of_the_scored_tokens():
    found = Evaluation(np.full((2, 3), np.log(2.0) * 4))
    assert found.scored_tokens == 6
    assert found.bits_per_byte(12) == pytest.approx(2.0)


def test_bad_arguments_are_named():
    _, params, cfg = twin("llama")
    with pytest.raises(InputError, match="too few for one window of 16"):
        windows(np.arange(15), 16)
    with pytest.raises(InputError, match="context is 1"):
        windows(np.arange(15), 1)
    with pytest.raises(InputError, match="row of token ids"):
        windows(np.ones(15), 4)
    with pytest.raises(InputError, match="0 windows"):
        evaluate(params, cfg, np.zeros((0, 4), np.int32))
    with pytest.raises(InputError, match="byte_count is 0"):
        Evaluation(np.ones((1, 1))).bits_per_byte(0)
