"""What has to be done so that a trigger is as it is wished. Layer: core.

It is told what the catalog holds, and answers with statements.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pgnotifybus.core import trigger_sql
from pgnotifybus.core.names import check_channel, check_schema, quote
from pgnotifybus.core.trigger_body import Definition
from pgnotifybus.core.trigger_catalog import Found, Table
from pgnotifybus.errors import SchemaError


@dataclass(frozen=True, slots=True)
class Wish:
    """What `install` was asked for."""

    channel: str
    key: tuple[str, ...] | None
    """None for the primary key."""
    columns: tuple[str, ...] | None
    when: str | None
    log: str | None = None
    """The schema of an event log; None to notify."""

    def on(self, table: Table) -> Definition:
        """What it means for a table.

        Raises:
            SchemaError: If the table has not got what is needed; the message says what to do.
        """
        key = table.primary_key if self.key is None else self.key
        if not key and self.key is None:
            raise SchemaError(
                f"{table.title} has no primary key: name the columns that tell its rows apart "
                "(--key a,b; key=['a', 'b']), or say that none do (--no-key; key=[]), to be told "
                "only that the table has changed"
            )
        if not key and self.columns is not None:
            raise SchemaError("without a key, no row and no value of it can be told: no columns")
        for name in (*key, *(self.columns or ())):
            if name not in table.columns:
                raise SchemaError(
                    f"{table.title} has no column {quote(name)}; it has "
                    f"{', '.join(map(quote, table.columns))}"
                )
            if name in table.virtual:
                raise SchemaError(
                    f"the column {quote(name)} of {table.title} is generated but not stored, and "
                    "PostgreSQL does not compute it for triggers: make it STORED"
                )
        return Definition(
            table.schema, table.name, self.channel, key, self.columns, self.when, self.log
        )


def wish(
    channel: str,
    columns: Iterable[str] | None = None,
    when: str | None = None,
    key: Iterable[str] | None = None,
    log: str | None = None,
) -> Wish:
    """What is wished, if it can be; the arguments are those of `install`.

    Args:
        channel, columns, when, key: As for `install`.
        log: The schema of the event log to write to; None to notify.

    Raises:
        InvalidChannel, ValueError: If it cannot be; the message says why.
    """
    check_channel(channel)
    if when is not None and not check_text("when", when).strip():
        raise ValueError("when must be a condition, or None for all rows")
    matter = None if columns is None else _check_names("columns", columns)
    if matter == ():
        raise ValueError("columns must name one at least, or be None for every change")
    names = None if key is None else _check_names("key", key)
    if log is not None:
        check_schema(log)
    return Wish(channel=channel, key=names, columns=matter, when=when, log=log)


def check_text(what: str, text: str) -> str:
    """The text itself, if it can be a part of a statement.

    Raises:
        ValueError: If it has a NUL character or a lone surrogate.
    """
    if "\0" in text:
        raise ValueError(f"{what} must not have a NUL character: {text!r}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{what} has a lone surrogate and cannot be sent as UTF-8: {text!r}"
        ) from None
    return text


def attached(found: Iterable[Found], oid: str, channel: str | None = None) -> list[Found]:
    """What is installed on a table, for one channel or all."""
    return [
        each
        for each in found
        if each.oid == oid and (channel is None or each.definition.channel == channel)
    ]


def orphans(
    found: Iterable[Found], schemas: Sequence[str], table: str, channel: str | None = None
) -> list[Found]:
    """What was installed on a table of this name that is gone."""
    return [
        each
        for each in found
        if each.oid is None
        and each.definition.table == table
        and each.definition.schema in schemas
        and (channel is None or each.definition.channel == channel)
    ]


def to_install(
    definition: Definition, table: Table, found: Sequence[Found], taken: Iterable[str]
) -> str | None:
    """The statements that install it; None if there is nothing to do.

    Where only the function differs, the table is not locked.

    Args:
        definition: What is to be installed.
        table: On what.
        found: What of ours is in the database.
        taken: The names of functions in the schema.
    """
    there = attached(found, table.oid, definition.channel)
    if not there:
        left = _left(definition, found)
        name = _free_name(definition, {*taken} - {each.name for each in left})
        function = f"{quote(definition.schema)}.{quote(name)}"
        return "\n".join(
            (
                to_remove(left),
                trigger_sql.create_function(definition, function, replace=False),
                trigger_sql.create_triggers(definition, function, name),
            )
        )
    # A script that was printed for another database can have put a second one beside the first.
    one, *more = sorted(there, key=lambda each: not (each.fires and each.does(definition)))
    statements = [to_remove(more)] if more else []
    if not (one.fires and one.does(definition)):
        statements.append(trigger_sql.create_function(definition, one.function, replace=True))
    if not one.fires:
        names = [each.name for each in one.triggers]
        statements.insert(0, trigger_sql.drop_triggers(definition, names))
        statements.append(trigger_sql.create_triggers(definition, one.function, one.name))
    return "\n".join(statements) if statements else None


def script(
    definition: Definition, table: Table, found: Sequence[Found], taken: Iterable[str]
) -> str:
    """The statements that install it, whatever is there when they run; as for `to_install`."""
    there = attached(found, table.oid, definition.channel)
    if there:
        one, *more = there
        made = trigger_sql.script(definition, one.schema, one.name)
        return "\n\n".join((*(_drop_if_there(each) for each in more), made))
    left = {each.name for each in _left(definition, found)}
    return trigger_sql.script(
        definition, definition.schema, _free_name(definition, {*taken} - left)
    )


def to_drop(
    found: Iterable[Found], oid: str | None, schemas: Sequence[str], table: str, channel: str | None
) -> list[Found]:
    """What `remove` has to drop, for one channel or all.

    Args:
        found: What of ours is in the database.
        oid: The table; None if there is none of this name.
        schemas: Where the table is, or may have been.
        table: Its name.
        channel: The channel; None for all.
    """
    left = orphans(found, schemas, table, channel)
    mine = [each for each in left if each.removable]
    if oid is None:
        return mine or left  # and the server says who may drop it
    # What a stranger has put there under the name of this table must not stop its owner.
    return mine + attached(found, oid, channel)


def to_remove(found: Iterable[Found]) -> str:
    """The statements that remove these."""
    return "\n".join(
        f"{trigger_sql.drop_triggers(each.definition, [one.name for one in each.triggers])}\n"
        f"DROP FUNCTION {each.function}();"
        for each in found
    )


def _left(definition: Definition, found: Iterable[Found]) -> list[Found]:
    """What a table of the same name has left that is gone; the new function may have its name.

    What another role owns is let be: it could change later what our triggers call.
    """
    found = orphans(found, [definition.schema], definition.table, definition.channel)
    return [each for each in found if each.owned and each.schema == definition.schema]


def _drop_if_there(one: Found) -> str:
    names = [each.name for each in one.triggers]
    drop = trigger_sql.drop_triggers(one.definition, names)
    return f"{drop}\nDROP FUNCTION IF EXISTS {one.function}();"


def _free_name(definition: Definition, taken: set[str]) -> str:
    attempt = 0
    while True:
        name = trigger_sql.function_name(definition.table, definition.channel, attempt)
        if name not in taken:
            return name
        attempt += 1


def _check_names(what: str, names: Iterable[str]) -> tuple[str, ...]:
    if isinstance(names, str):  # its letters would be taken for names
        raise ValueError(f"{what} must be a list of names: [{names!r}], not {names!r}")  # noqa: TRY004
    checked = tuple(check_text(f"a name in {what}", name) for name in names)
    if len(set(checked)) < len(checked):
        raise ValueError(f"{what} has a name twice: {', '.join(checked)}")
    return checked
