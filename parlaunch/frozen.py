"""`@dataclass(frozen=True)` whose methods are written when they are first needed.

Python's own writes and compiles six methods for each class when its module is imported: a quarter of the time of a dry run,
most of it for classes and methods that this run never uses. Here fields, `replace`, `asdict` and `match` are Python's, and
`__init__` is compiled for classes of which many are made. Type checkers see Python's decorator.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING


class HashedOnce:
    """A base of values by which much is remembered: their hash is computed once."""

    __slots__ = ("_hash",)


if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
    from dataclasses import replace

    replaced = replace
else:
    import dataclasses
    from operator import attrgetter

    FEW = 40
    """So many values are filled field by field in the time that compiling their `__init__` takes."""

    def replaced(value, /, **changes):
        """`dataclasses.replace` for values with slots and no `__post_init__`, in a third of its time: searches make them by the
        thousand."""
        cls = value.__class__
        made, left = cls.__new__(cls), len(changes)
        for name, put in _slots(cls).items():
            if name in changes:
                put(made, changes[name])
                left -= 1
            else:
                put(made, getattr(value, name))
        if left:
            raise TypeError(f"{cls.__name__} has no field for one of {', '.join(changes)}")
        return made

    @functools.cache
    def _slots(cls):
        return {f.name: getattr(cls, f.name).__set__ for f in dataclasses.fields(cls)}

    def dataclass(*, frozen, slots=False, kw_only=False):
        """Python's decorator for values; classes that change take Python's own."""
        if not frozen:
            raise TypeError("values are frozen; `dataclasses.dataclass` is for what changes")

        def decorate(cls):
            own = set(vars(cls))
            if not cls.__doc__:
                cls.__doc__ = cls.__name__  # else its signature is made for it, which compiles `__init__`
            made = dataclasses.dataclass(init=False, repr=False, eq=False, slots=slots, kw_only=kw_only)(cls)
            fields = dataclasses.fields(made)
            hashed = _hash([f.name for f in fields if (f.compare if f.hash is None else f.hash)])
            methods = {
                "__init__": _Init(FEW if slots and not hasattr(cls, "__post_init__") else 0),
                "__repr__": _repr,
                "__eq__": _equal([f.name for f in fields if f.compare]),
                "__hash__": _once(hashed) if issubclass(cls, HashedOnce) else hashed,
                "__setattr__": _refuse_to_set,
                "__delattr__": _refuse_to_delete,
            }
            if slots:
                methods |= {"__getstate__": _state, "__setstate__": _restore}
            for name, method in methods.items():
                if name not in own:
                    setattr(made, name, method)
            return made

        return decorate

    class _Init:
        """Stands for `__init__` until it was called often or someone looks at it."""

        def __init__(self, few):
            self.left = few

        def __get__(self, instance, owner):
            if instance is not None and self.left:
                self.left -= 1
                return functools.partial(_fill, instance)
            cls = next(c for c in owner.__mro__ if vars(c).get("__init__") is self)
            cls.__init__ = _compiled(cls)
            return cls.__init__ if instance is None else cls.__init__.__get__(instance, owner)

    def _fill(value, /, *places, **names):
        """What `__init__` does, field by field. What does not fit the fields it leaves to the compiled one, which says so."""
        cls = value.__class__
        fields, usual, makes = _filling(cls)
        placed = dict(zip(fields, places, strict=False))
        given = usual | placed | names
        for name, make in makes:
            if name not in given:
                given[name] = make()
        slots = _slots(cls)
        if len(placed) < len(places) or placed.keys() & names.keys() or given.keys() != slots.keys():
            return cls.__init__(value, *places, **names)
        for name, put in slots.items():
            put(value, given[name])

    @functools.cache
    def _filling(cls):
        """The fields that are given by place, the defaults, and what makes the others."""
        fields, missing = dataclasses.fields(cls), dataclasses.MISSING
        return (
            tuple(f.name for f in fields if not f.kw_only),
            {f.name: f.default for f in fields if f.default is not missing},
            tuple((f.name, f.default_factory) for f in fields if f.default_factory is not missing),
        )

    def _compiled(cls):
        fields = [f for f in dataclasses.fields(cls) if f.init]
        known, body, words = {"_missing": dataclasses.MISSING, "_set": object.__setattr__}, [], []
        for f in sorted(fields, key=lambda f: f.kw_only):
            if f.kw_only and "*" not in words:
                words.append("*")
            value = f.name
            if f.default is not dataclasses.MISSING:
                known[f"_default_{f.name}"] = f.default
                words.append(f"{f.name}=_default_{f.name}")
            elif f.default_factory is not dataclasses.MISSING:
                known[f"_make_{f.name}"] = f.default_factory
                words.append(f"{f.name}=_missing")
                value = f"_make_{f.name}() if {f.name} is _missing else {f.name}"
            else:
                words.append(f.name)
            if slotted := getattr(getattr(cls, f.name, None), "__set__", None):
                known[f"_set_{f.name}"] = slotted
            body.append(f" _set_{f.name}(self, {value})" if slotted else f" _set(self, {f.name!r}, {value})")
        if hasattr(cls, "__post_init__"):
            body.append(" self.__post_init__()")
        exec(f"def __init__(self, {', '.join(words)}):\n" + ("\n".join(body) or " pass"), known)
        init = known["__init__"]
        init.__qualname__ = f"{cls.__qualname__}.__init__"
        init.__annotations__ = {f.name: f.type for f in fields} | {"return": None}
        return init

    def _values(names):
        """A function that answers the values of these fields as a tuple."""
        if len(names) > 1:
            return attrgetter(*names)
        return (lambda self: (getattr(self, names[0]),)) if names else (lambda self: ())

    def _equal(names):
        values = _values(names)

        def __eq__(self, other):
            return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

        return __eq__

    def _hash(names):
        values = _values(names)

        def __hash__(self):
            return hash(values(self))

        return __hash__

    def _once(hashed):
        def __hash__(self):
            try:
                return self._hash
            except AttributeError:
                value = hashed(self)
                object.__setattr__(self, "_hash", value)
                return value

        return __hash__

    def _repr(self):
        shown = (f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self) if f.repr)
        return f"{type(self).__qualname__}({', '.join(shown)})"

    def _refuse_to_set(self, name, value):
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")

    def _refuse_to_delete(self, name):
        raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")

    def _state(self):
        return [getattr(self, f.name) for f in dataclasses.fields(self)]

    def _restore(self, state):
        for f, value in zip(dataclasses.fields(self), state, strict=True):
            object.__setattr__(self, f.name, value)
