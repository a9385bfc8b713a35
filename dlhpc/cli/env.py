"""`dlhpc env`: build software environments from recipes, and show which recipes there are."""

from __future__ import annotations

from pathlib import Path

import click

from dlhpc.cli.common import print_json, wide_console


@click.group()
def env() -> None:
    """Software environments: build, verify and list them."""


@env.command()
@click.argument("recipe")
@click.option(
    "--prefix", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder to build it in."
)
@click.option("--extra", "extras", multiple=True, help="Also install this group of dlhpc's own requirements (test).")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def build(recipe: str, prefix: Path, extras: tuple[str, ...], as_json: bool) -> None:
    """Build RECIPE (a name or a file) in a folder and check that two ranks really run in it.

    What is done already is skipped; an interrupted build continues.

    \b
    Example:  dlhpc env build cpu --prefix /shared/envs/cpu
    """
    from dataclasses import asdict

    from dlhpc.envs import progress
    from dlhpc.envs.build import build as build_environment
    from dlhpc.envs.recipe import load_recipe

    record = build_environment(load_recipe(recipe), prefix, progress.for_terminal(), extras)
    if as_json:
        print_json(asdict(record))
    else:
        click.echo(f"environment {record.name} in {prefix}: {record.summary()}")


@env.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_recipes(as_json: bool) -> None:
    """List the recipes that `dlhpc env build` knows.

    \b
    Example:  dlhpc env list
    """
    from dlhpc.envs.recipe import load_recipe, recipe_files
    from dlhpc.errors import DlhpcError

    rows = []
    for name, path in sorted(recipe_files().items()):
        try:
            recipe = load_recipe(path)
            row = {"name": name, "description": recipe.description, "file": str(path), "hash": recipe.hash()}
        except DlhpcError as error:
            row = {"name": name, "description": "", "file": str(path), "error": str(error)}
        rows.append(row)
    if as_json:
        print_json(rows)
        return
    from rich.table import Table

    table = Table("recipe", "what it holds", "file", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row["name"], row.get("error") or row["description"], row["file"])
    wide_console().print(table)
