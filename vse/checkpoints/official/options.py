"""The options that an official code saves beside its weights."""

from typing import Any

_PLAIN = (bool, int, float, str)


class Options:
    """The options of a checkpoint; what they do not say is taken from the published models, and noted.

    Args:
        given: The options by name; those that are None say nothing.

    Attributes:
        assumed: "name=value" for each option that was taken from the published models.
    """

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = {key: value for key, value in given.items() if value is not None}
        self.assumed: list[str] = []

    def get(self, name: str, published: Any, known: tuple[str, ...] = ()) -> Any:
        """Return the value of an option.

        Args:
            name: Its name.
            published: The published models' value, for an option that is not there.
            known: The values that this package has; () means any of the same type.

        Raises:
            ValueError: The value is of another type, or none of those ``known``.
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
        """Raise ValueError for an option with another value than this package has; the weights would not show it."""
        for name, value in values.items():
            found = self.given.get(name, value)
            if not isinstance(found, _PLAIN) or found != value:
                expected = f"this package has {value!r}, as the published models"
                raise ValueError(f"its option {name} is {_show(found)}; {expected}")


def _show(value: Any) -> str:
    """An option for a message."""
    return repr(value)[:100] if isinstance(value, _PLAIN) else f"a {type(value).__name__}"
