"""``dlhpc init``: from a folder to a spec that runs."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("task", type=click.Choice(["classification"]), required=False)
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option("--out", type=click.Path(path_type=Path), help="File to write; else FOLDER's name with .yaml, here.")
@click.option("--name", help="Name of the runs; else the folder's.")
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@click.option("--schema", is_flag=True, help="Print the JSON schema of a spec, for editors, and nothing else.")
def init(task: str | None, folder: Path | None, out: Path | None, name: str | None, force: bool, schema: bool) -> None:
    """Look at FOLDER (one folder per class inside) and write a commented spec that runs as it is.

    \b
    Examples:
      dlhpc init classification photos/
      dlhpc init --schema > spec.schema.json
    """
    if schema:
        from dlhpc.cli.common import print_json
        from dlhpc.spec.models import Spec

        print_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **Spec.model_json_schema()})
        return
    if task is None or folder is None:
        raise click.UsageError("Name the task and the folder: dlhpc init classification FOLDER")
    from dlhpc.cli.common import shell_word
    from dlhpc.data.starter import starter_spec
    from dlhpc.errors import UserError
    from dlhpc.files import replace_text

    target = out or Path(f"{folder.resolve().name}.yaml")
    if target.exists() and not force:
        raise UserError("exists already", where=target, remedy="Choose another with --out, or replace it with --force.")
    from dlhpc.schedulers.local_queue import offered_cores

    ranks = 2 if offered_cores() >= 2 else 1
    text = starter_spec(folder, name=name, relative_to=target.absolute().parent, ranks_per_node=ranks)
    replace_text(target, text)
    word = shell_word(target)
    click.echo(f"Wrote {word}. Read it, then:  dlhpc submit {word} --wait")
