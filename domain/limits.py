"""The limits of parameters as values, used by checks and by the generated documents.

``check`` raises ``InvalidParameter`` for a value of another type or out of range.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias


class InvalidParameter(ValueError):
    """A parameter is out of range; has its name, the value or a wrong part of it, and a remedy."""

    def __init__(self, name: str, value: object, remedy: str) -> None:
        super().__init__(f"{name}={value!r}: {remedy}")
        self.name = name
        self.value = value
        self.remedy = remedy


@dataclass(frozen=True)
class IntRange:
    """An integer from ``low`` to ``high``, both included."""

    low: int
    high: int
    multiple_of: int = 1

    def check(self, name: str, value: object) -> None:
        number = value if isinstance(value, int) and not isinstance(value, bool) else None
        if number is None or not self.low <= number <= self.high:
            remedy = f"give a whole number from {self.low:,} to {self.high:,}"
            raise InvalidParameter(name, value, remedy)
        if number % self.multiple_of:
            raise InvalidParameter(name, value, f"give a multiple of {self.multiple_of}")


@dataclass(frozen=True)
class FloatRange:
    """A finite number up to and including ``high``; includes ``low`` unless ``above_low``."""

    low: float
    high: float
    above_low: bool = False

    def check(self, name: str, value: object) -> None:
        if isinstance(value, int | float) and not isinstance(value, bool):
            # Both ends are finite, so NaN and infinities are outside.
            inside = self.low < value <= self.high or (value == self.low and not self.above_low)
            if inside:
                return
        low, high = f"{self.low:g}", f"{self.high:g}"
        bounds = f"above {low} and at most {high}" if self.above_low else f"from {low} to {high}"
        raise InvalidParameter(name, value, f"give a number {bounds}")


@dataclass(frozen=True)
class BoundedText:
    """Text that is not blank, of at most ``max_length`` characters."""

    max_length: int

    def check(self, name: str, value: object) -> None:
        if not isinstance(value, str) or not value.strip() or len(value) > self.max_length:
            raise InvalidParameter(name, value, f"give text of 1 to {self.max_length} characters")


@dataclass(frozen=True)
class Prompts:
    """A bounded number of texts."""

    max_count: int
    each: BoundedText

    def check(self, name: str, value: object) -> None:
        if not isinstance(value, tuple):
            raise InvalidParameter(name, value, "give a list of texts")
        if len(value) > self.max_count:
            raise InvalidParameter(name, len(value), f"give at most {self.max_count} prompts")
        for text in value:
            self.each.check(name, text)


@dataclass(frozen=True)
class Choice:
    """One value of an enumeration."""

    names: type[StrEnum]

    def check(self, name: str, value: object) -> None:
        if value not in list(self.names):
            raise InvalidParameter(name, value, f"give one of {', '.join(self.names)}")


@dataclass(frozen=True)
class Boolean:
    """On or off."""

    def check(self, name: str, value: object) -> None:
        if not isinstance(value, bool):
            raise InvalidParameter(name, value, "give true or false")


Limit: TypeAlias = IntRange | FloatRange | BoundedText | Prompts | Choice | Boolean
"""One parameter's type and range."""
