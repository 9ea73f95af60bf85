from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidArgument
from services.model import chat
from services.model.chat import Beside, ChatTemplate, Message
from services.model.tokenizer import Tokenizer
from tests.tiny_model import CHAT_TEMPLATE, tiny_tokenizer

SPECIALS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
ENCODER = tiny_tokenizer()
TOKENIZER = Tokenizer(ENCODER.to_str().encode())
PIECES = [*SPECIALS, "<", "<|", "<|im_", "start|>", "|>", "hi", " ", "\n", "東"]
CONTENTS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join)


def _ids(template: ChatTemplate, messages: list[Message]) -> list[int]:
    return TOKENIZER.encode_rendered(template.render(messages, 0))


@given(st.lists(CONTENTS, min_size=1, max_size=3))
def test_no_content_becomes_a_special_token_and_none_is_changed(contents: list[str]) -> None:
    template = ChatTemplate(CHAT_TEMPLATE, {})
    ids = _ids(template, [Message("user", content) for content in contents])
    special = {ENCODER.token_to_id(text) for text in SPECIALS}
    assert sum(token in special for token in ids) == 2 * len(contents) + 1
    turns = "".join(f"<|im_start|>user\n{content}<|im_end|>\n" for content in contents)
    decoded = ENCODER.decode(ids, skip_special_tokens=False)
    assert decoded == turns + "<|im_start|>assistant\n"


def test_no_content_becomes_a_special_token_of_one_character() -> None:
    encoder = tiny_tokenizer()
    encoder.add_special_tokens(["‡"])
    tokenizer = Tokenizer(encoder.to_str().encode())
    source = "‡{{ messages[0].content }}‡"
    ids = tokenizer.encode_rendered(ChatTemplate(source, {}).render([Message("user", "a‡b‡")], 0))
    special = encoder.token_to_id("‡")
    assert [at for at, token in enumerate(ids) if token == special] == [0, len(ids) - 1]
    assert encoder.decode(ids, skip_special_tokens=False) == "‡a‡b‡‡"


@given(CONTENTS)
def test_a_template_that_strips_content_lets_no_special_token_through(content: str) -> None:
    source = "{{ message.content | trim }}|im_end|>"
    loop = "{% for message in messages %}" + source + "{% endfor %}"
    ids = _ids(ChatTemplate(loop, {}), [Message("user", content)])
    assert not {ENCODER.token_to_id(text) for text in SPECIALS} & set(ids)


def test_variables_and_dates_reach_a_template() -> None:
    source = "{{ bos_token }}{{ strftime_now('%Y') }}{{ messages | tojson }}"
    rendered = ChatTemplate(source, {"bos_token": "<s>"}).render([Message("user", "é")], 0)
    assert rendered == '<s>1970[{"role": "user", "content": "é"}]'


def test_what_templates_do_every_day_works() -> None:
    source = (
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}"
        "{{ m.content.replace('a', 'b').strip() | replace('b', 'c') | indent(2) }}"
        "{% endfor %}{{ ['x', 'y'] | map('upper') | join('-') }}{{ ', '.join(['p', 'q']) }}"
        "{% for key, value in {'k': 1}.items() %}{{ key ~ '=' ~ value }}{% endfor %}"
        "{{ messages[::-1][0].content.split('a')[-1] }}{{ [1, 2] | tojson(indent=1) }}"
        "{% if nothing is not defined %}{{ nothing | default('d') }}{% endif %}"
        "{% set n = namespace(x=0) %}{% set n.x = nothing %}{{ n.x is defined }}"
    )
    turns = [Message("user", "a1"), Message("user", " a2\nx ")]
    rendered = ChatTemplate(source, {}).render(turns, 0)
    assert rendered == "1/2,c12/2c2\n  xX-Yp, qk=12\nx [\n 1,\n 2\n]dFalse"


def test_what_a_template_refuses_is_the_callers_error() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(InvalidArgument) as refused:
        template.render([Message("user", "x")], 0)
    assert "roles must alternate" in refused.value.message
    assert refused.value.field == "messages"


ATTACKS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in messages * 100000 %}{% endfor %}{% endfor %}",
    "{{ 'x' * 100000000000 }}",
    "{{ 9 ** 9999 }}",
    "{% set n = namespace(x=9) %}{% for i in range(18) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "{{ '%1000000000d' % 1 }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ nothing.at.all }}",
    "{% for i in range(50000) %}{{ 'y' * 1000 }}{% endfor %}",
    "{{ 'x'.center(1000000000) }}",
    "{{ 'x'.ljust(1000000000) }}{{ 'x'.rjust(1000000000) }}{{ 'x'.zfill(1000000000) }}",
    "{{ 'x' | center(1000000000) }}",
    "{{ 'x' | attr('center') }}{{ ('x' | attr('center'))(1000000000) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ 'x' | indent(1000000000, true) }}",
    "{{ messages | batch(1000000000, 'x') | list }}",
    "{{ lipsum(n=100000) }}",
    "{% set n = namespace(x='xx') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}{{ "
    + "f(" * 16
    + "'x' * 999"
    + ")" * 16
    + "[0]}}",
    "{% set x = 'x' * 9999 %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 12 + "{{ x[0] }}",
    "{% set x = 'x' * 10000 %}{% set y = x.replace('x', x) %}{{ y.replace('x', y) }}",
    "{% set x = 'x' * 10000 %}{% set y = x | replace('x', x) %}{{ y | replace('x', y) }}",
    "{{ ('x' * 1000000).join('x' * 1000000) }}",
    "{{ ('x' * 1000000) | join('x' * 1000000) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
    "{{ 1 // 0 }}",
    "{{ [1] * 16000000 }}",
    "{% set n = namespace(x=[1]) %}{% for i in range(40) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
    "{{ n.x }}",
    "{% set n = namespace(x=[1]) %}{% for i in range(40) %}{% set n.x = {'a': n.x, 'b': n.x} %}"
    "{% endfor %}",
    "{% set x = 'x' * 9999999 %}{{ [x, x, x] }}",
    "{{ '%0999999999d' % 1 }}{{ '%*d' % (999999999, 1) }}",
    "{{ '%(a)s%(a)s%(a)s' % {'a': 'x' * 9999999} }}",
    "{{ '{0:>999999999}'.format(1) }}{{ '{0}{0}{0}'.format('x' * 9999999) }}",
    "{{ '{0.__class__}'.format(1) }}{{ nothing.at.all }}",
    "{{ ['x' * 99999] | batch(9999, 'x' * 9999) | list }}",
    "{{ [1] | batch(9999999) | list }}",
    "{{ messages | tojson(indent=999999) }}",
    "{% set n = namespace(x=[]) %}{% for i in range(900) %}{% set n.x = [n.x] %}{% endfor %}"
    "{{ [n.x] * 9999 | tojson(indent=64) }}",
    "{% set n = namespace(x=[]) %}{% for i in range(9999) %}"
    "{% set n.x = n.x + ['x' * 9999999] %}{% endfor %}",
    "{{ ('x' * 999999) | wordwrap(1) }}",
    "{% set x = 'x' * 4000000 %}{{ [x, x, x, x, x] | join }}",
    "{% set x = 'x' * 4000000 %}{{ ''.join([x, x, x, x, x]) }}",
]


@pytest.mark.parametrize("source", ATTACKS)
def test_a_hostile_template_ends_in_a_typed_error(source: str) -> None:
    template = ChatTemplate(source, {})
    with pytest.raises(InvalidArgument):
        template.render([Message("user", "x")], 0)


def test_a_template_sees_nothing_behind_its_values() -> None:
    source = "[{{ messages.__class__ }}{{ messages[0].__init__ }}]"
    assert ChatTemplate(source, {}).render([Message("user", "x")], 0) == "[]"


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(100) %}a{{ i }}{% endfor %}",
        "{% for i in range(100) %}{% set x = i %}{% endfor %}",
        "{% set x %}{% for i in range(100) %}{{ loop.length }}{% endfor %}{% endset %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(9) }}",
        "{% set x = 1 %}" * 9,
        "{% if 1 in messages %}{% endif %}" * 9,
        "{% set x %}" + "{{ 1 }}" * 9 + "{% endset %}",
        "{{ 1" + " | abs" * 9 + " }}",
    ],
)
def test_a_template_that_takes_too_long_is_stopped(source: str) -> None:
    ticks = iter(range(1000))
    template = ChatTemplate(source, {}, clock=lambda: float(next(ticks)))
    with pytest.raises(InvalidArgument):
        template.render([Message("user", "x")], 0)


class _Waits:
    """Something else has the core for a moment."""

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s

    def __iter__(self) -> Iterator[str]:
        time.sleep(self._wait_s)
        yield "there"


def test_a_template_on_a_machine_that_is_busy_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "MAX_RENDER_S", 0.5)
    template = ChatTemplate("{% for text in slow %}{{ text }}{% endfor %}", {})
    beside = Beside(options={"slow": _Waits(0.75)})
    assert template.render([Message("user", "x")], 0, beside) == "there"


NESTED = "{% for i in messages %}" * 30 + "{% endfor %}" * 30


@pytest.mark.parametrize("source", ["{% for %}", "{{ x", "x" * (300 << 10), NESTED])
def test_a_template_that_is_none_is_refused_when_it_loads(source: str) -> None:
    with pytest.raises(InvalidArgument):
        ChatTemplate(source, {})
