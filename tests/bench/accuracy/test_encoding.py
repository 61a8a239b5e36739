from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from qdeploy.bench.accuracy.encoding import Request, encode_item, encode_request, encode_rolling
from qdeploy.bench.accuracy.items import Generate, Item, Rolling
from qdeploy.bench.smoke import smoke_suite
from qdeploy.bench.tokenizer import Encoder, encoder_of
from qdeploy.errors import UsageError
from tests.conftest import byte_tokenizer

PAIRS = [
    ("The cat", " sits"),
    ("The cat ", "sits"),
    ("Two  ", " mice\n"),
    ("", "A line"),
    ("", "</s>A"),
    ("x", "é"),
]


def bos_encoder() -> Encoder:
    tokenizer = byte_tokenizer()
    bos = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[bos])
    return encoder_of(tokenizer)


def test_bos_policy_is_the_tokenizer_s_own(encoder: Encoder) -> None:
    with_bos = bos_encoder()
    assert (encoder.bos, with_bos.bos) == ((), (256,))
    assert with_bos.encode("ab") == [256, *encoder.encode("ab")]
    assert encoder.sha256 != with_bos.sha256


def test_empty_context_is_the_prefix_token(encoder: Encoder) -> None:
    request = encode_request(encoder, "", "ab")
    assert (request.ids, request.start) == ((256, *encoder.encode("ab")), 1)


def test_spaces_move_to_the_continuation(encoder: Encoder) -> None:
    moved, plain = encode_request(encoder, "a  ", "b"), encode_request(encoder, "a", "  b")
    assert moved == plain
    assert moved.start == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [lambda: encoder_of(byte_tokenizer()), bos_encoder])
def test_requests_are_those_of_lm_eval(make: Callable[[], Encoder]) -> None:
    """lm-eval's own `loglikelihood` cuts the same pairs into the same ids at the same border."""
    template = pytest.importorskip("lm_eval.api.model").TemplateLM
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    encoder = make()

    class Recorder(template):  # type: ignore[misc, valid-type]
        eot_token_id = encoder.tokenizer.eos_token_id
        prefix_token_id = encoder.prefix

        def tok_encode(self, text: str, add_special_tokens: bool = True, **_: Any) -> list[int]:
            ids: list[int] = encoder.tokenizer(text, add_special_tokens=add_special_tokens).input_ids
            return ids

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> Any:
            return [(tuple(context + continuation), len(context)) for _, context, continuation in requests]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            raise NotImplementedError

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            raise NotImplementedError

    pairs = [*PAIRS, *(request for item in smoke_suite().items[:40] for request in item.requests)]
    theirs = Recorder().loglikelihood([instance("loglikelihood", {}, pair, 0) for pair in pairs], True)
    ours = [encode_request(encoder, *pair) for pair in pairs]
    assert [(request.ids, request.start) for request in ours] == theirs


def test_too_long_items_are_refused_not_cut(encoder: Encoder) -> None:
    with pytest.raises(UsageError, match="holds 16"):
        encode_item(encoder, Item("0", "c", (("a" * 20, " b"), ("a", " c")), 0, (1, 1)), 16)


def test_prompt_hash_follows_ids_and_border(encoder: Encoder) -> None:
    def hash_of(context: str, continuation: str) -> str:
        return encode_item(encoder, Item("0", "c", ((context, continuation),), 0, (1,)), None).prompt_hash

    assert hash_of("ab", " c") == hash_of("ab ", "c")
    assert len({hash_of("ab", " c"), hash_of("ab", " d"), hash_of("a", "b c")}) == 3


@pytest.mark.parametrize("length", [0, 1, 6, 7, 8, 13, 14, 15, 40])
def test_rolling_windows_are_those_of_lm_eval(encoder: Encoder, length: int) -> None:
    utils = pytest.importorskip("lm_eval.utils")
    text = "abcdefghij" * 4
    theirs = map(
        utils.make_disjoint_window,
        utils.get_rolling_token_windows(
            token_list=encoder.encode(text[:length]),
            prefix_token=encoder.prefix,
            max_seq_len=7,
            context_len=1,
        ),
    )
    ours = list(encode_rolling(encoder, text[:length], 8))
    assert [(request.ids, request.start) for request in ours] == [
        ((*context, *continuation), len(context)) for context, continuation in theirs
    ]
    assert sum(len(request.ids) - request.start for request in ours) == length


def test_rolling_text_fits_the_served_context(encoder: Encoder) -> None:
    item = Item("0", "c", (Rolling("x" * 50),), None, ())
    requests = encode_item(encoder, item, 16).requests
    assert max(len(request.ids) for request in requests) == 15, "the server generates one more"


def test_generation_ends_at_the_end_of_sequence_too(encoder: Encoder) -> None:
    item = Item("0", "c", (Generate("ab", ("\n",), 4),), None, ())
    [[generation]] = encode_item(encoder, item, 6).calls
    assert not isinstance(generation, Request)
    assert (generation.ids, generation.call.until) == (tuple(encoder.encode("ab")), ("\n", "</s>"))
    with pytest.raises(UsageError, match="holds 5 with up to 4 generated"):
        encode_item(encoder, item, 5)
