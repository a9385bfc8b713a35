"""``dlhpc init``: from a folder or table to a spec that runs."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("task", type=click.Choice(["classification", "detection", "regression"]), required=False)
@click.argument("source", type=click.Path(path_type=Path), required=False)
@click.option("--out", type=click.Path(path_type=Path), help="File to write; else SOURCE's name with .yaml, here.")
@click.option("--name", help="Name of the runs; else SOURCE's.")
@click.option("--target", "targets", multiple=True, metavar="COLUMN", help="Regression: what to predict; repeatable.")
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@click.option("--schema", is_flag=True, help="Print the JSON schema of a spec, for editors, and nothing else.")
def init(
    task: str | None,
    source: Path | None,
    out: Path | None,
    name: str | None,
    targets: tuple[str, ...],
    force: bool,
    schema: bool,
) -> None:
    """Look at SOURCE and write a commented spec that runs as it is.

    SOURCE is for classification a folder with one folder per class inside; for detection a folder with `images` and
    `labels` (or KITTI's image_2 and label_2) inside; for regression a table (CSV or Parquet), of which the last column
    of numbers is predicted if no --target is given.

    \b
    Examples:
      dlhpc init classification photos/
      dlhpc init detection streets/
      dlhpc init regression concrete.csv --target strength
      dlhpc init --schema > spec.schema.json
    """
    if schema:
        from dlhpc.cli.common import print_json
        from dlhpc.spec.models import Spec

        print_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **Spec.model_json_schema()})
        return
    if task is None or source is None:
        raise click.UsageError("Name the task and the data: dlhpc init classification FOLDER")
    if targets and task != "regression":
        raise click.UsageError("--target is for regression")
    from dlhpc.cli.common import shell_word
    from dlhpc.errors import UserError
    from dlhpc.files import replace_text

    resolved = source.resolve()
    target = out or Path(f"{resolved.stem if resolved.is_file() else resolved.name}.yaml")
    if target.exists() and not force:
        raise UserError("exists already", where=target, remedy="Choose another with --out, or replace it with --force.")
    replace_text(target, _spec(task, source, name, targets, target.absolute().parent))
    word = shell_word(target)
    click.echo(f"Wrote {word}. Read it, then:  dlhpc submit {word} --wait")


def _spec(task: str, source: Path, name: str | None, targets: tuple[str, ...], relative_to: Path) -> str:
    from dlhpc.schedulers.local_queue import offered_cores

    ranks = 2 if offered_cores() >= 2 else 1
    if task == "detection":
        from dlhpc.data.starter_detection import detection_spec

        return detection_spec(source, name, relative_to=relative_to, ranks_per_node=ranks)
    if task == "regression":
        from dlhpc.data.starter_regression import regression_spec

        return regression_spec(source, name, targets=targets, relative_to=relative_to, ranks_per_node=ranks)
    from dlhpc.data.starter import starter_spec

    return starter_spec(source, name, relative_to=relative_to, ranks_per_node=ranks)
