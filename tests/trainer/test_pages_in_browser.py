"""Both reports in a real browser: nothing of the data's runs, everybody can read them, and the filters filter."""

from pathlib import Path

import pytest

from llava_api.constants import GateOutcome
from llava_api.report import Judgement
from llava_trainer.data.processor import Processor
from llava_trainer.reporting import Reporter
from llava_trainer.stages import prepare
from tests.browser import ask, find_obstacles
from tests.tiny.export import make_export
from tests.trainer.exports import prepare_config
from tests.trainer.report_pages import (
    NASTY,
    Asked,
    make_answer,
    make_entry,
    make_hard,
    make_hardest,
    make_metrics,
    render,
)

pytestmark = pytest.mark.browser
WIDTHS = (390, 1280)
HARMFUL = (
    """<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>' " --> </style> {{ 1 }}"""
)


def make_page(said: str = "no") -> str:
    answers: list[Asked] = [
        make_answer(f"{n} {said}", base=f"it is {said}", tuned="yes" if n else f"it is not {said}",
                    text=f"Is it {said}?", type=said, instructed="maybe", alone="yes", is_cut=n == 1)
        for n in range(9)
    ]  # fmt: skip
    answers.append(make_answer("w", base="yes", tuned="no"))
    answers.append(make_answer("1", set="prompt", expected=None, text=said, base=said, tuned=said))
    gate = Judgement(
        outcome=GateOutcome.UNDECIDED,
        metric="exact_match",
        gain=0.1,
        low=-0.1,
        high=0.2,
        limit=0.0,
        samples=9,
        groups=9,
    )
    metrics = make_metrics(answers, name=said, gate=gate, retention=gate, origins={said: said}, digests={said: said})
    curve = [make_entry(step) for step in range(1, 9)]
    return render(answers, curve, metrics=metrics, hardest=make_hardest([make_hard(1, said)]))


@pytest.fixture(scope="module")
def dataset_page(tmp_path_factory: pytest.TempPathFactory, toy_model_dir: Path, toy_processor: Processor) -> str:
    root = tmp_path_factory.mktemp("prepare")
    make_export(root / "dataset", images_per_scene=1)
    config = prepare_config(root, toy_model_dir, format="ubiai", training={"maxLength": 64})
    prepare.run(config, Reporter(config))
    return config.volume.dataset_report_html.read_text(encoding="utf-8")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_everybody_can_read_the_reports(width: int, dark: bool, dataset_page: str, tmp_path: Path) -> None:
    script = "return matchMedia('(prefers-color-scheme: dark)').matches;"
    assert ask(make_page(), script, tmp_path, width=width, dark=dark) is dark
    for name, text in (("evaluation", make_page()), ("dataset", dataset_page)):
        folder = tmp_path / name
        folder.mkdir()
        assert find_obstacles(text, folder, width=width, dark=dark) == []


def test_what_keeps_somebody_from_reading_is_found(tmp_path: Path) -> None:
    text = make_page().replace("--muted: #5d6878", "--muted: #c5c8d0").replace(' aria-label="Search"', "")
    rules = {found.split(":")[0] for found in find_obstacles(text, tmp_path, width=390)}
    assert "color-contrast" in rules


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_stands_out_of_the_window(width: int, dataset_page: str, tmp_path: Path) -> None:
    long = "x" * 300
    for name, text in (("evaluation", make_page(long)), ("dataset", dataset_page)):
        folder = tmp_path / name
        folder.mkdir()
        found = ask(text, "return [document.documentElement.scrollWidth, innerWidth];", folder, width=width)
        assert found == [width, width]


@pytest.mark.parametrize("said", [NASTY, HARMFUL])
def test_nothing_of_the_data_s_runs(said: str, tmp_path: Path) -> None:
    script = "return [document.title, document.scripts.length, document.querySelectorAll('[onerror]').length];"
    title, scripts, handlers = ask(make_page(said), script, tmp_path, width=1280)
    assert title == f"{said}: base against tuned"
    assert (scripts, handlers) == (2, 0), "the page's own and the test's"


def test_filters_and_search_leave_what_was_asked_for(tmp_path: Path) -> None:
    script = """
        const shown = () => [...document.querySelectorAll('.sample')].filter((one) => one.checkVisibility()).length;
        const count = () => document.querySelector('[data-count]').textContent;
        const told = [[shown(), count()]];
        for (const kind of ['improved', 'worse', 'right', 'wrong', 'all']) {
          document.querySelector(`[data-show=${kind}]`).click();
          told.push([shown(), count()]);
        }
        const search = document.querySelector('.filters input');
        search.value = 'IT IS NOT';
        search.dispatchEvent(new Event('input'));
        told.push([shown(), count()]);
        return told;
    """
    told = ask(make_page(), script, tmp_path, width=1280)
    assert [number for number, _ in told] == [10, 8, 1, 8, 2, 10, 1]
    assert all(str(number) == count for number, count in told)
