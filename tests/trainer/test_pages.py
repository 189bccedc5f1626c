"""What pages are made of: text that stays text, charts' places, thumbnails and differences of words."""

import math
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup
from PIL import Image

import llava_trainer.pages
from llava_trainer.pages import rendering
from llava_trainer.pages.charts import Bar, Curve, place_bars, place_lines, round_ticks
from llava_trainer.pages.thumbnails import thumbnail
from llava_trainer.pages.word_diff import MAX_WORDS, Piece, diff_words

TEMPLATES = Path(llava_trainer.pages.__file__).parent / "templates"


def fill(source: str, **values: object) -> str:
    return rendering._html().from_string(source).render(values)


def test_every_value_is_text_for_html_and_for_eyes() -> None:
    assert fill('<p title="{{ x }}">{{ x }}</p>', x='<i a="b">&\x1b[1m\u202e') == (
        '<p title="&lt;i a=&#34;b&#34;&gt;&amp;\\x1b[1m\\u202e">&lt;i a=&#34;b&#34;&gt;&amp;\\x1b[1m\\u202e</p>'
    )
    assert fill("{{ x }}|{{ y }}|{{ z | number }}", x=None, y="a\nb", z=1234) == "|a\nb|1,234"
    assert fill("{% macro m(x) %}<b>{{ x }}</b>{% endmacro %}{{ m(x) }}", x="<") == "<b>&lt;</b>"


def test_what_a_template_is_not_given_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'x' is undefined"):
        fill("{{ x }}")


def test_no_template_takes_values_as_markup_and_none_loads_anything() -> None:
    files = sorted(path for path in TEMPLATES.rglob("*") if path.is_file())
    assert {path.suffix for path in files} >= {".html", ".css", ".js"}
    for path in files:
        source = path.read_text(encoding="utf-8")
        for word in ("|safe", "| safe", "autoescape", "Markup", "url(", "@import", "http://", "https://", " on"):
            found = word in source and not (word == " on" and " on" + "click=" not in source)
            assert not found, f"{path.name} has {word}"
        if path.suffix in (".css", ".js"):
            assert "{{" not in source, "no value stands in a style or a script"
            assert "{%" not in source


def test_markdown_takes_no_markup_link_or_line_break_from_values() -> None:
    escape = rendering.escape_markdown
    assert escape("a\n# b") == r"a \# b"
    assert escape("<b>*x* [y](z) `c` |d| &amp;") == r"\<b\>\*x\* \[y\](z) \`c\` \|d\| \&amp;"
    assert escape("https://a www.b c@d") == r"https\://a www\.b c\@d"
    assert escape("9.00, 12:30\u202e") == r"9.00, 12:30\\u202e"


def test_values_are_written_as_people_read_them() -> None:
    assert rendering.count(1, "sample") == "1 sample"
    assert rendering.count(1234, "entry", "entries") == "1,234 entries"
    assert rendering.percent(0.914) == "91.4\u202f%"
    assert (rendering.share(1.2), rendering.share(-1), rendering.share(0.5)) == ("100.00%", "0.00%", "50.00%")
    assert (rendering.points(0.5), rendering.points(-0.001)) == ("+50.0", "-0.1")
    assert rendering.capital("aB") == "AB"
    assert isinstance(fill("{{ 1 }}"), str)
    assert rendering._show(Markup("<b>")) == "<b>"


def test_ticks_of_thousands_are_written_out() -> None:
    chart = place_lines([Curve(label="Tokens a second", xs=[1, 2], ys=[1_400.0, 1_900.0])], x_label="step")
    assert chart is not None
    assert [tick.label for tick in chart.y_ticks] == ["0", "500", "1,000", "1,500", "2,000"]


def test_a_curve_leaves_out_what_is_no_number_and_thins_out_the_rest() -> None:
    xs = list(range(1, 30_001))
    ys = [math.nan if x == 5 else 1e-4 * x / 30_000 for x in xs]
    chart = place_lines([Curve(label="Rate", xs=xs, ys=ys)], x_label="step")
    assert chart is not None
    (line,) = chart.lines
    assert len(line.path.split("L")) == 1000
    assert "nan" not in line.path
    assert chart.factor == "×10⁻⁴"
    assert line.path.endswith("546.0,22.0"), "the last point is the highest, at the right upper corner"
    assert line.end == (546.0, 22.0)
    assert place_lines([Curve(label="Loss", xs=[1], ys=[math.nan])], x_label="step") is None
    assert place_lines([Curve(label="Loss", xs=[7], ys=[0.0])], x_label="step") is not None


def test_curves_of_one_chart_share_its_axes() -> None:
    chart = place_lines(
        [Curve(label="a", xs=[0, 10], ys=[4.0, 0.0]), Curve(label="b", xs=[5], ys=[2.0], style="second")],
        x_label="step",
    )
    assert chart is not None
    assert [line.end for line in chart.lines] == [(546.0, 186.0), (295.0, 104.0)]
    assert [(line.label, line.style, line.last) for line in chart.lines] == [("a", "curve", "0"), ("b", "second", "2")]


@pytest.mark.parametrize("highest", [0.0, 1e-7, 0.0002, 0.3, 1.0, 2.0000001, 9.99, 10, 17, 12345.0])
def test_ticks_are_round_few_and_reach_the_highest_value(highest: float) -> None:
    ticks = round_ticks(highest)
    assert 2 <= len(ticks) <= 5
    assert ticks[0] == 0
    assert ticks[-1] >= highest * (1 - 1e-9)
    assert ticks[-2] < highest or highest == 0


def test_bars_stand_side_by_side_and_those_beyond_the_limit_are_known() -> None:
    bars = [Bar(begin=0, end=10, count=4), Bar(begin=10, end=20, count=0), Bar(begin=20, end=30, count=2)]
    chart = place_bars(bars, limit=15)
    assert chart is not None
    assert [(column.x, column.height, column.is_over) for column in chart.columns] == [
        (34.0, 146.0, False), (335.3, 73.0, True),
    ]  # fmt: skip
    assert (chart.highest, chart.limit_x) == (4, 260.0)
    beyond = place_bars(bars, limit=99)
    assert beyond is not None
    assert beyond.limit_x is None
    assert place_bars([]) is None


def test_thumbnails_are_small_jpegs_whatever_the_image() -> None:
    for image in (Image.new("RGBA", (4000, 100)), Image.new("P", (30, 20)), Image.effect_noise((900, 2000), 90)):
        source = thumbnail(image)
        assert source.startswith("data:image/jpeg;base64,/9j/")
        assert len(source) < 60_000


def test_words_that_differ_are_found() -> None:
    one, other = diff_words("the total is 9.00 euro", "the total was 9.50 euro")
    assert one == (
        Piece(text="the total ", is_same=True), Piece(text="is", is_same=False), Piece(text=" 9.", is_same=True),
        Piece(text="00", is_same=False), Piece(text=" euro", is_same=True),
    )  # fmt: skip
    assert "".join(piece.text for piece in other) == "the total was 9.50 euro"
    assert [piece.text for piece in other if not piece.is_same] == ["was", "50"]
    assert diff_words("a <b>", "a")[0][1] == Piece(text=" <b>", is_same=False)


def test_texts_without_a_word_in_common_and_very_long_ones_are_left_whole() -> None:
    assert diff_words("red", "blue") == ((Piece(text="red", is_same=True),), (Piece(text="blue", is_same=True),))
    assert diff_words("a b", "c d")[0] == (Piece(text="a b", is_same=True),), "white space is no word"
    assert diff_words("", "x") == ((), (Piece(text="x", is_same=True),))
    long = "a " * MAX_WORDS
    assert diff_words(long, "a")[0] == (Piece(text=long, is_same=True),)
