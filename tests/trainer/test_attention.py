"""Attention without masks learns what attention with masks learns; what is chosen where, and what is not waited for."""

import ast
import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlavaForConditionalGeneration, masking_utils
from transformers.masking_utils import create_causal_mask

from llava_trainer.data.collate import Batch, Item, collate, collate_packed
from llava_trainer.data.encode import IGNORED, Encoded
from llava_trainer.model import attention as choosing
from llava_trainer.model import varlen
from llava_trainer.model.attention import (
    CAUSAL_SDPA,
    FLASH,
    VARLEN,
    attention_of,
    packing_mask,
    register_attention,
    resolve_attention,
)
from llava_trainer.model.learning import train_whole
from llava_trainer.model.objective import SupervisedLoss
from llava_trainer.model.varlen import Heads, find_varlen_fault, heads_of, varlen_attention_forward
from tests.trainer import reference_varlen
from tests.trainer.checkpoints import build_llava

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")
HEADS = Heads(query=4, key_value=2, size=8)
IMAGE_TOKEN, IMAGE_TOKENS = 5, 4
PAD = 0


def make_items() -> list[Item]:
    """Samples of 14, 5, 9 and 1 tokens; the first and third show an image. Keys and values have fewer heads."""
    rng = np.random.default_rng(0)
    items = []
    for length, image in ((14, True), (5, False), (9, True), (1, False)):
        ids = [int(token) for token in rng.integers(6, 60, length)]
        if image:
            ids[1 : 1 + IMAGE_TOKENS] = [IMAGE_TOKEN] * IMAGE_TOKENS
        labels = [IGNORED] * (length - length // 3) + ids[length - length // 3 :]
        encoded = Encoded(
            input_ids=tuple(ids), labels=tuple(labels), images=(), full_length=length, first_answer_length=length,
            num_characters=0,
        )  # fmt: skip
        items.append((encoded, rng.standard_normal((1, 3, 28, 28)).astype(np.float32) if image else None))
    return items


def make_module(attention: str, *, gradient_checkpointing: bool = False) -> SupervisedLoss:
    register_attention()
    llava = build_llava()
    llava.set_attn_implementation(attention)
    train_whole(llava)
    return SupervisedLoss(llava, gradient_checkpointing=gradient_checkpointing).train()


def gradients_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name.removeprefix("tuned."): p.grad for name, p in module.named_parameters() if p.grad is not None}


def learn(module: SupervisedLoss, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss = module(**batch)
    torch.autograd.backward(loss)
    return loss.detach(), gradients_of(module)


def learn_masked(items: list[Item]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """By transformers' own forward pass, with a mask of what is filled up."""
    llava: LlavaForConditionalGeneration = build_llava()
    train_whole(llava)
    llava.model.vision_tower.eval()
    batch = collate(items, PAD)
    mask = nn.utils.rnn.pad_sequence([torch.ones(encoded.num_tokens) for encoded, _ in items], batch_first=True).long()
    assert not mask.all()
    logits = llava(
        input_ids=batch["input_ids"], attention_mask=mask, pixel_values=batch["pixel_values"], use_cache=False
    ).logits
    targets = batch["labels"][:, 1:].flatten()
    loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets, ignore_index=IGNORED, reduction="sum")
    torch.autograd.backward(loss)
    return loss.detach(), gradients_of(llava)


def assert_same(
    learned: tuple[torch.Tensor, dict[str, torch.Tensor]], expected: tuple[torch.Tensor, dict[str, torch.Tensor]]
):
    torch.testing.assert_close(learned[0], expected[0], rtol=1e-6, atol=0)
    assert learned[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        difference = (learned[1][name] - gradient).abs().max()
        assert difference <= 1e-6 * gradient.abs().max(), name


@pytest.mark.parametrize("attention", [CAUSAL_SDPA, VARLEN, "sdpa", "eager"])
def test_padded_rows_learn_without_a_mask_what_they_learn_under_one(attention: str):
    items = make_items()
    assert_same(learn(make_module(attention), collate(items, PAD)), learn_masked(items))


def test_the_proof_would_see_a_token_that_sees_what_follows(monkeypatch: pytest.MonkeyPatch):
    module = make_module(CAUSAL_SDPA)
    for layer in module.tuned.model.language_model.layers:
        layer.self_attn.is_causal = False
    loss, _ = learn(module, collate(make_items(), PAD))
    assert abs(loss - learn_masked(make_items())[0]) > 1e-3 * loss


@pytest.mark.parametrize("attention", [CAUSAL_SDPA, VARLEN])
def test_nothing_makes_a_mask_for_padded_rows_or_looks_whether_one_is_needed(
    attention: str, monkeypatch: pytest.MonkeyPatch
):
    def fail(*arguments: object, **settings: object) -> None:
        raise AssertionError("a mask was thought of")

    monkeypatch.setattr(masking_utils, "sdpa_mask", fail)
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", fail)
    seen = []
    kernel = nn.functional.scaled_dot_product_attention

    def attend(*arguments: torch.Tensor, attn_mask: object, is_causal: bool, **settings: object) -> torch.Tensor:
        seen.append((attn_mask, is_causal))
        return kernel(*arguments, attn_mask=attn_mask, is_causal=is_causal, **settings)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", attend)
    learn(make_module(attention), collate(make_items(), PAD))
    tower, language_model = [(None, False)] * 3, [(None, True)] * 2
    assert seen == [*tower, *language_model]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("rows", [[[0, 1, 2, 3]], [[3, 0], [2, 1]], [[1], [2, 3], [0]]], ids=str)
@pytest.mark.parametrize("attention", [CAUSAL_SDPA, VARLEN, "sdpa", "eager"])
def test_packed_rows_learn_what_samples_alone_learn(
    attention: str, rows: list[list[int]], checkpointing: bool, monkeypatch: pytest.MonkeyPatch
):
    reference_varlen.install(monkeypatch)
    items = make_items()
    module = make_module(attention, gradient_checkpointing=checkpointing)
    packed = collate_packed([[items[index] for index in row] for row in rows], PAD)
    order = [items[index] for row in rows for index in row]
    assert_same(learn(module, packed), learn_masked(order))


def test_borders_are_found_where_nobody_tells_them(monkeypatch: pytest.MonkeyPatch):
    reference_varlen.install(monkeypatch)
    packed = collate_packed([make_items()[:2], make_items()[2:]], PAD)
    untold = {name: value for name, value in packed.items() if name not in ("cu_seq_lens", "max_seq_len")}
    assert_same(learn(make_module(VARLEN), untold), learn(make_module(VARLEN), packed))


def test_the_proof_would_see_samples_that_see_each_other(monkeypatch: pytest.MonkeyPatch):
    reference_varlen.install(monkeypatch)
    packed = collate_packed([make_items()], PAD)
    loss, _ = learn(make_module(VARLEN), packed)
    whole = packed["input_ids"].numel()
    borders = {"cu_seq_lens": torch.tensor([0, whole], dtype=torch.int32), "max_seq_len": whole}
    mixed, _ = learn(make_module(VARLEN), packed | borders)
    assert abs(mixed - loss) > 1e-3 * loss


def test_borders_are_where_samples_and_filling_begin():
    items = make_items()
    packed = collate_packed([[items[1], items[3]], [items[2]]], PAD)
    assert packed["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 0, 1, 2], list(range(9))]
    assert packed["cu_seq_lens"].tolist() == [0, 5, 6, 9, 18]
    assert packed["cu_seq_lens"].dtype == torch.int32
    assert packed["max_seq_len"] == 9


def test_the_mask_of_packed_rows_is_the_one_that_transformers_makes():
    items = make_items()
    packed = collate_packed([[items[0], items[1]], [items[2], items[3]]], PAD)
    config = build_llava().config.text_config
    config._attn_implementation = "sdpa"
    embedded = torch.zeros(*packed["input_ids"].shape, 1)
    theirs = create_causal_mask(config, embedded, None, None, packed["position_ids"])
    assert torch.equal(packing_mask(packed["position_ids"]), theirs)


def test_the_kernel_is_given_the_scale_and_no_repeated_heads(monkeypatch: pytest.MonkeyPatch):
    reference_varlen.install(monkeypatch)
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 6, 8) for heads in (4, 2, 2))
    borders = torch.tensor([0, 4, 6, 12], dtype=torch.int32)
    module = SimpleNamespace(num_key_value_groups=2)
    for scaling in (None, 0.5):
        attended, weights = varlen_attention_forward(
            module, query, key, value, None, scaling=scaling, cu_seq_lens_q=borders, max_length_q=6
        )
        assert weights is None
        assert attended.shape == (2, 6, 4, 8)
        expected = nn.functional.scaled_dot_product_attention(
            query[1:], key[1:], value[1:], is_causal=True, scale=scaling, enable_gqa=True
        )
        torch.testing.assert_close(attended[1:], expected.transpose(1, 2), rtol=1e-5, atol=1e-6)


def test_the_reference_takes_what_torchs_own_takes():
    source = Path(torch.__file__).parent.joinpath(*reference_varlen.MODULE.split(".")[1:]).with_suffix(".py")
    functions = {node.name: node for node in ast.parse(source.read_text()).body if isinstance(node, ast.FunctionDef)}
    theirs = functions["varlen_attn"].args
    code = reference_varlen.varlen_attn.__code__
    positional, named = code.co_argcount, code.co_argcount + code.co_kwonlyargcount
    assert [argument.arg for argument in theirs.args] == list(code.co_varnames[:positional])
    assert set(code.co_varnames[positional:named]) <= {argument.arg for argument in theirs.kwonlyargs}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A GPU on which everything runs, with flash-attn; what it computes is for tests/gpu."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: ModuleSpec(name, None))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(choosing, "find_flash_fault", lambda device: None)
    monkeypatch.setattr(choosing, "find_varlen_fault", lambda device, dtype, heads: None)
    return monkeypatch


def test_attention_is_taken_as_asked_for(gpu: pytest.MonkeyPatch):
    taken = {name: resolve_attention(name, CUDA, torch.bfloat16, packed=HEADS) for name in ("sdpa", "eager", FLASH)}
    assert taken == {"sdpa": CAUSAL_SDPA, "eager": "eager", FLASH: FLASH}


@pytest.mark.parametrize("packed", [None, HEADS])
def test_on_a_cpu_and_on_old_gpus_and_in_fp32_it_is_sdpa(gpu: pytest.MonkeyPatch, packed: Heads | None):
    assert resolve_attention("auto", CPU, torch.bfloat16, packed=packed) == CAUSAL_SDPA
    assert resolve_attention("auto", CUDA, torch.float32, packed=packed) == CAUSAL_SDPA
    gpu.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert resolve_attention("auto", CUDA, torch.float16, packed=packed) == CAUSAL_SDPA


@pytest.mark.parametrize(
    ("has_flash", "flash_fault", "varlen_fault", "taken", "packed"),
    [
        (True, None, None, FLASH, FLASH),
        (True, "no kernel image", None, CAUSAL_SDPA, VARLEN),
        (False, None, None, CAUSAL_SDPA, VARLEN),
        (False, None, "not implemented", CAUSAL_SDPA, CAUSAL_SDPA),
    ],
)
def test_what_runs_is_taken_in_order(
    gpu: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, has_flash: bool, flash_fault: str | None,
    varlen_fault: str | None, taken: str, packed: str,
):  # fmt: skip
    gpu.setattr(choosing, "has_flash_attention", lambda: has_flash)
    gpu.setattr(choosing, "find_flash_fault", lambda device: flash_fault)
    gpu.setattr(choosing, "find_varlen_fault", lambda device, dtype, heads: varlen_fault)
    assert resolve_attention("auto", CUDA, torch.bfloat16) == taken
    assert resolve_attention("auto", CUDA, torch.bfloat16, packed=HEADS) == packed
    for fault in filter(None, (flash_fault, varlen_fault)):
        assert f"does not run on this GPU: {fault}" in caplog.text


def test_what_is_told_is_what_people_know():
    names = {CAUSAL_SDPA: "sdpa", VARLEN: "varlen_attn", "eager": "eager"}
    register_attention()
    llava = build_llava()
    for implementation, name in names.items():
        llava.set_attn_implementation(implementation)
        assert attention_of(llava.config) == name


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Where torch's kernel is imported from."""
    module = SimpleNamespace(varlen_attn=reference_varlen.varlen_attn)
    monkeypatch.setitem(sys.modules, reference_varlen.MODULE, module)
    find_varlen_fault.cache_clear()
    yield module
    find_varlen_fault.cache_clear()


def test_a_kernel_that_runs_is_called_forward_and_backward_with_the_models_heads(kernel: SimpleNamespace):
    seen = []

    def attend(query: torch.Tensor, key: torch.Tensor, *others: object, **settings: object) -> torch.Tensor:
        query.register_hook(lambda gradient: seen.append(("backward", *gradient.shape)))
        seen.append(("forward", *query.shape, key.shape[1], query.dtype))
        return reference_varlen.varlen_attn(query, key, *others, **settings)

    kernel.varlen_attn = attend
    assert find_varlen_fault(CPU, torch.bfloat16, HEADS) is None
    assert seen == [("forward", 8, 4, 8, 2, torch.bfloat16), ("backward", 8, 4, 8)]


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, ValueError, ImportError])
def test_a_kernel_that_does_not_run_says_why(kernel: SimpleNamespace, error: type[Exception]):
    def fail(*arguments: object, **settings: object) -> None:
        raise error("head dimension should be at most 256\nand more")

    kernel.varlen_attn = fail
    assert find_varlen_fault(CPU, torch.bfloat16, HEADS) == "head dimension should be at most 256"


def test_a_torch_without_the_kernel_says_so(kernel: SimpleNamespace):
    del kernel.varlen_attn
    assert "varlen_attn" in find_varlen_fault(CPU, torch.bfloat16, HEADS)


def test_heads_are_read_off_the_configuration():
    config = build_llava().config
    assert heads_of(config) == HEADS
    config.text_config.head_dim = 24
    assert heads_of(config).size == 24


def test_images_that_do_not_fit_their_tokens_are_refused():
    batch = collate(make_items(), PAD)
    with pytest.raises(ValueError, match="8 tokens stand for images, which have 4 features"):
        make_module(CAUSAL_SDPA)(**batch | {"pixel_values": batch["pixel_values"][:1]})


def test_torchs_compiler_is_not_loaded_for_a_kernel_that_is_not_used():
    top = ast.parse(Path(varlen.__file__).read_text()).body
    assert reference_varlen.MODULE not in [node.module for node in top if isinstance(node, ast.ImportFrom)]
