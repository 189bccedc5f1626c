"""The report stays small, however many questions there are and whatever is said in them."""

from dataclasses import replace

import pytest
from PIL import Image

from llava_trainer.evaluation.page import (
    LIMITS,
    MAX_BYTES,
    _judge_sets,
    _open_albums,
    _render,
    build_evaluation_markdown,
    build_evaluation_page,
)
from tests.trainer.report_pages import Page, make_answer, make_content, make_hard, make_hardest, make_metrics, render


def noise_of_its_own(path: str) -> Image.Image:
    return Image.effect_noise((300, 300), 90)


@pytest.mark.parametrize("long", [False, True], ids=["usual", "as long as can be"])
def test_a_page_of_20_000_questions_has_at_most_5_mb(long: bool) -> None:
    """Every question with a picture of noise, the worst case for JPEG; and with markup, the worst case for escaping."""
    said = "<&>'\"\U0001f600\u202e" * 160 if long else "9.00"
    answers = [
        make_answer(
            str(n), text=said, expected=said, base=said if n % 3 else "no", tuned=said if n % 4 else "x",
            image=f"{n}.png",
        )
        for n in range(20_000)
    ]  # fmt: skip
    prompts = [
        make_answer(str(n), set="prompt", expected=None, text=said, base=said, image=f"p{n}.png") for n in range(32)
    ]
    hardest = make_hardest([make_hard(n, said, images=5) for n in range(40)])
    metrics = make_metrics(answers[:50])
    text = render([*answers, *prompts], metrics=metrics, hardest=hardest, load_image=noise_of_its_own)
    assert len(text.encode()) <= MAX_BYTES
    read = Page(text)
    assert len(read.all("article", "sample")) >= (5 if long else 30)
    assert len(read.all("img")) >= (0 if long else 60)


def test_the_smallest_page_is_small_enough_whatever_is_said() -> None:
    said = "<&>'\"\U0001f600\u202e" * 160
    answers = [make_answer(str(n), text=said, expected=said, base=said) for n in range(50)]
    prompts = [make_answer(str(n), set="prompt", expected=None, text=said, base=said) for n in range(32)]
    content = make_content([*answers, *prompts], hardest=make_hardest([make_hard(n, said) for n in range(40)]))
    smallest = _render(content, _judge_sets(content), _open_albums(content), LIMITS[-1])
    assert len(smallest.encode()) <= MAX_BYTES / 2


def test_names_are_cut_too() -> None:
    """An entry of a dataset may have a name of a million characters."""
    long = "<&>" * 300_000
    answers = [make_answer(f"{n}{long}", type=f"{n % 20}{long}") for n in range(20)]
    hard = [make_hard(n) for n in range(40)]
    hard = [replace(one, sample=replace(one.sample, id=long)) for one in hard]
    content = make_content(answers, hardest=make_hardest(hard))
    page, markdown = build_evaluation_page(content), build_evaluation_markdown(content)
    assert len(Page(page).all("article", "sample")) == 20
    assert len(page.encode()) < MAX_BYTES / 2
    assert len(markdown.encode()) < 100_000


def test_the_markdown_file_is_small_too() -> None:
    said = "<&>'\"\U0001f600\u202e" * 160
    answers = [make_answer(str(n), text=said, expected=said, base=said) for n in range(500)]
    content = make_content(answers, metrics=make_metrics(answers[:50]))
    assert len(build_evaluation_markdown(content).encode()) < 500_000
