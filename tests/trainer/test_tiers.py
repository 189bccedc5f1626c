"""What tests cannot run is told before they run, with the reason, and is an error in CI: the rules of the tiers."""

from types import SimpleNamespace

import pytest
import torch

from tests import conftest as tiers
from tests.gpu import conftest as gpu

pytest_plugins = ["pytester"]

TESTS = """
import pytest

pytestmark = pytest.mark.gpu

@pytest.mark.needs_flash_attn
def test_flash(): pass

@pytest.mark.needs_gpus(2)
def test_two(): pass

def test_one(): pass
"""
OPTIONS = ("--strict-markers", "-o", "markers=gpu", "-o", "asyncio_default_fixture_loop_scope=function")
LACKS_FLASH = "flash-attn is not installed (trainer_image/build-flash-attn.sh)"
LACKS_GPUS = "2 GPUs are needed, 1 found"


def install(monkeypatch: pytest.MonkeyPatch, *, num_gpus: int, has_flash: bool, in_ci: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.setattr(gpu, "has_flash_attention", lambda: has_flash)
    monkeypatch.setenv("CI", "true" if in_ci else "")


@pytest.mark.parametrize(
    ("num_gpus", "has_flash", "reasons"),
    [(1, False, {LACKS_FLASH, LACKS_GPUS}), (2, False, {LACKS_FLASH}), (1, True, {LACKS_GPUS}), (2, True, set())],
)
def test_what_a_test_lacks_besides_a_gpu_is_the_reason_why_it_is_left_out(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, num_gpus: int, has_flash: bool, reasons: set[str]
):
    install(monkeypatch, num_gpus=num_gpus, has_flash=has_flash, in_ci=False)
    pytester.makepyfile(TESTS)
    result = pytester.inline_run(*OPTIONS, plugins=[gpu])
    passed, skipped, failed = result.listoutcomes()
    assert {report.longrepr[2].removeprefix("Skipped: ") for report in skipped} == reasons
    assert (len(passed), len(failed)) == (3 - len(reasons), 0)


def test_in_ci_nothing_runs_where_a_test_lacks_something(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    install(monkeypatch, num_gpus=1, has_flash=False, in_ci=True)
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_inprocess(*OPTIONS, plugins=[gpu])
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([
        "*with CI=true every GPU test has to run, but:", f"*::test_flash: {LACKS_FLASH}", f"*::test_two: {LACKS_GPUS}",
    ])  # fmt: skip
    result.assert_outcomes()


@pytest.mark.parametrize(("in_ci", "code"), [(False, pytest.ExitCode.OK), (True, pytest.ExitCode.USAGE_ERROR)])
def test_a_tier_that_cannot_run_is_listed_and_an_error_in_ci(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, in_ci: bool, code: pytest.ExitCode
):
    install(monkeypatch, num_gpus=0, has_flash=False, in_ci=in_ci)
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_inprocess(*OPTIONS, plugins=[tiers, gpu])
    assert result.ret == code
    result.assert_outcomes(skipped=3)
    result.stdout.fnmatch_lines(["*tier gpu did not run (3 tests)*", "no NVIDIA GPU*"])


def test_what_one_process_could_not_run_is_known_when_another_crashes():
    """xdist gives a process that crashed no output; an error here would end the tests without a word of the crash."""
    config = SimpleNamespace(stash=pytest.Stash())
    finished = SimpleNamespace(config=config, workeroutput={"obstacles": {"gpu": (3, "no NVIDIA GPU")}})
    tiers.pytest_testnodedown(finished, None)
    tiers.pytest_testnodedown(SimpleNamespace(config=config), "Not properly terminated")
    assert config.stash[tiers._OBSTACLES] == {"gpu": (3, "no NVIDIA GPU")}
