"""The options that an official code saves together with its weights."""

from typing import Any

_PLAIN = (bool, int, float, str)


class Options:
    """The options of a checkpoint. Missing ones have the values of the published models, and are noted.

    Args:
        given: The options by name; None counts as missing.

    Attributes:
        assumed: "name=value" for each missing option that was asked for.
    """

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = {key: value for key, value in given.items() if value is not None}
        self.assumed: list[str] = []

    def get(self, name: str, published: Any, known: tuple[str, ...] = ()) -> Any:
        """Return the value of an option.

        Args:
            name: Its name.
            published: The published models' value, for a missing option.
            known: The values that this package supports; () means any value of the same type.

        Returns:
            The value.

        Raises:
            ValueError: The value has another type, or is not among ``known``.
        """
        if name not in self.given:
            self.assumed.append(f"{name}={published}")
        value = self.given.get(name, published)
        kind = int | float if isinstance(published, float) else type(published)
        is_odd = isinstance(value, str) and (len(value) > 100 or not value.isprintable())
        if not isinstance(value, kind) or is_odd or (known and value not in known):
            expected = f"one of {', '.join(known)}" if known else f"a value such as {published!r}"
            raise ValueError(f"its option {name} is {_show(value)}; expected {expected}")
        return value

    def require(self, **values: Any) -> None:
        """Check options that this package supports with one value only, since the weights would not show another.

        Args:
            values: The value of each option that is supported. A missing option counts as having this value.

        Raises:
            ValueError: An option has another value.
        """
        for name, value in values.items():
            found = self.given.get(name, value)
            if not isinstance(found, _PLAIN) or found != value:
                expected = f"this package supports only {value!r}, the published models' value"
                raise ValueError(f"its option {name} is {_show(found)}; {expected}")


def _show(value: Any) -> str:
    """An option for a message."""
    return repr(value)[:100] if isinstance(value, _PLAIN) else f"a {type(value).__name__}"
