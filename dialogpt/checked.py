"""Attributes that are checked whenever they are set; what a value may be is left to `dialogpt.settings`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from dialogpt.settings import Kind, required

Value = TypeVar("Value")


class Checked(Generic[Value]):
    """A descriptor: an attribute that is checked whenever it is set; `@Checked` decorates its check."""

    def __init__(self, check: Callable[[Any, Value], None]) -> None:
        self._check = check
        self.__doc__ = check.__doc__

    @classmethod
    def of_kind(cls, kind: Kind) -> Checked[Any]:
        """Return an attribute that takes the values of a kind."""
        # Python calls `__set_name__` with the attribute's name later, when the class around it is complete.
        checked: Checked[Any] = Checked(lambda _, value: required(checked._name, value, kind))
        return checked

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Value:
        value: Value = instance.__dict__[self._name]
        return value

    def __set__(self, instance: Any, value: Value) -> None:
        self._check(instance, value)
        instance.__dict__[self._name] = value
