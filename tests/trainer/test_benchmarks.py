"""What the benchmarks calculate by themselves: lengths and filling."""

import pytest

from tests.benchmarks.mixture import draw_shapes, encode_shape, max_length


def test_the_mixture_shrinks_in_proportion_and_stays_as_it_is():
    whole, quarter = draw_shapes(512, seed=0), draw_shapes(512, seed=0, image_tokens=144)
    assert whole == draw_shapes(512, seed=0)
    assert max(shape.tokens for shape in whole) <= max_length() == 2048
    assert max_length(144) == 512
    for large, small in zip(whole, quarter, strict=True):
        assert (large.image_tokens == 576) == (small.image_tokens == 144)
        assert small.text_tokens == pytest.approx(large.text_tokens / 4, abs=4)
    # LLaVA's 665K: 6 % without an image, 60 % of a padded random batch of 16 is real.
    assert 0.04 < sum(shape.image_tokens == 0 for shape in whole) / 512 < 0.09


def test_a_shape_becomes_a_sample_as_long():
    (shape,) = draw_shapes(1, seed=3, image_tokens=144)
    encoded = encode_shape(shape, image_token_id=5, first_id=10, last_id=20, seed=0)
    assert encoded.num_tokens == shape.tokens
    assert encoded.input_ids.count(5) == shape.image_tokens == 144
    assert encoded.num_supervised == shape.answer_tokens
