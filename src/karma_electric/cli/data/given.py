"""Options that would do nothing beside what else is given are refused, not passed over in silence."""

from __future__ import annotations

import typer


def refuse_unused(ctx: typer.Context, *parameters: str, why: str, hint: str) -> None:
    """Raise `InputError` if the command line names one of these options.

    Args:
        ctx: of the command.
        parameters: names of the command's parameters (`no_semantic`), not of their options.
        why: why they have no effect ("--no-semantic loads no model").
        hint: what to type instead.

    Raises:
        InputError: naming the option. A value from the environment is no request, and is left alone.
    """
    from karma_electric.core.errors import InputError

    for parameter in ctx.command.params:
        if parameter.name not in parameters:
            continue
        source = ctx.get_parameter_source(parameter.name)
        if source is not None and source.name == "COMMANDLINE":
            raise InputError(f"{parameter.opts[0]} has no effect: {why}.", hint)


def refuse_unused_semantic(ctx: typer.Context, *, no_semantic: bool) -> None:
    """Refuse the options of the comparison by meaning where there is none. Raises: InputError."""
    if no_semantic:
        refuse_unused(
            ctx,
            "semantic",
            "model",
            why="--no-semantic compares words only and loads no model",
            hint="Leave out one of them.",
        )
