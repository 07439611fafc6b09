"""What one setting is: its default, its range, the environment variables that set it, and what it means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from abswitch import addresses, checks
from abswitch.errors import InvalidInput

PREFIX = "VLLM_MODEL_SWITCHING_"
_SETTING = "abswitch setting"
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
MIB_PER_GIB = 1024


class _Unset:
    """Stands where no value was given in code; the environment, a file or the default decides."""

    def __repr__(self) -> str:
        return "<environment, file or default>"


UNSET: Final = _Unset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of value.

    Attributes:
        check: (where, value) → the value, or raises `InvalidInput`.
        parse: text of an environment variable → a value for `check`; raises `ValueError` when it cannot be read.
        words: what is allowed.
        is_optional: whether None is; in the environment and in files, where it cannot be written, the word `none`.
        shown: a text that is refused, as an error may show it.
    """

    check: Callable[[str, object], Any]
    parse: Callable[[str], Any]
    words: str
    is_optional: bool = False
    shown: Callable[[str], str] = str


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A field's description, kept in its metadata.

    Attributes:
        variables: environment variables without the prefix, the first one being the name to use.
        scaled: variable → what its number is multiplied with.
    """

    default: Any
    kind: Kind
    doc: str
    variables: tuple[str, ...] = ()
    scaled: Mapping[str, float] = field(default_factory=dict)
    secret: bool = False


def setting(default: Any, kind: Kind, doc: str, *variables: str, secret: bool = False, **scaled: float) -> Any:
    """A dataclass field with its description.

    Args:
        variables: spellings beside the field's own name in capitals; the first is the one shown first.
        scaled: spellings in another unit.
    """
    described = Setting(default=default, kind=kind, doc=doc, variables=variables, scaled=scaled, secret=secret)
    return field(default=UNSET, repr=not secret, metadata={_SETTING: described})


def setting_of(metadata: Any) -> Setting | None:
    """The description in a field's metadata; None where the field is not a setting."""
    found = metadata.get(_SETTING)
    return found if isinstance(found, Setting) else None


# --- kinds ------------------------------------------------------------------------------------------------------------


def _words(check: Callable[[str, object], Any]) -> str:
    try:
        check("", object())
    except InvalidInput as refused:
        return refused.allowed
    raise AssertionError("a check accepted an object that no setting can have")


def _kind(check: Callable[[str, object], Any], parse: Callable[[str], Any]) -> Kind:
    return Kind(check=check, parse=parse, words=_words(check))


def _boolean(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError(text)


def flag() -> Kind:
    """True or False; in the environment also 1/0, yes/no, on/off."""
    return Kind(check=checks.flag, parse=_boolean, words="true or false (also 1/0, yes/no, on/off)")


def whole(low: int, high: int | None = None) -> Kind:
    """A whole number."""
    return _kind(lambda where, value: checks.integer(where, value, low=low, high=high), int)


def number(low: float = 0.0, high: float = float("inf"), *, above: bool = True) -> Kind:
    """A number in (low, high], or in [low, high]."""
    return _kind(lambda where, value: checks.number(where, value, low=low, high=high, above=above), float)


def choice(*options: str) -> Kind:
    """One of a few words."""
    return _kind(lambda where, value: checks.one_of(where, value, options), str)


def text() -> Kind:
    """Any text that is not empty."""

    def check(where: str, value: object) -> str:
        if not isinstance(value, str) or not value:
            raise InvalidInput(where, value, "a text that is not empty")
        return value

    return _kind(check, str)


def secret() -> Kind:
    """A text that is never shown, not in an error either."""

    def check(where: str, value: object) -> str:
        if not isinstance(value, str) or not value:
            raise InvalidInput(where, "(hidden)", "a text that is not empty")
        return value

    return _kind(check, str)


def address() -> Kind:
    """An http or https address without user name and password."""
    return replace(_kind(addresses.web_address, str), shown=addresses.without_credentials)


def is_none(value: object) -> bool:
    """Whether a value of the environment or of a file is the word that stands for None."""
    return isinstance(value, str) and value.strip().lower() == "none"


def optional(kind: Kind, absent: str) -> Kind:
    """The kind, or None; in the environment and in files `none`."""

    def check(where: str, value: object) -> Any:
        if value is None:
            return None
        try:
            return kind.check(where, value)
        except InvalidInput as refused:
            raise InvalidInput(where, refused.value, words) from None

    words = f"{kind.words}; none: {absent}"

    def parse(given: str) -> Any:
        return None if is_none(given) else kind.parse(given)

    return replace(kind, check=check, parse=parse, words=words, is_optional=True)
