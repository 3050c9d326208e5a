"""The job that runs everything on a cluster: search, train, certify, report.

    ray job submit --working-dir . -- python -m raycrt.cluster.pipeline --out /shared/raycrt/digits

It runs `raycrt demo` after one check: the output must be on storage that all nodes share, as it has
to outlast the job's copy of the project and the nodes.
"""

from __future__ import annotations

import uuid
from typing import Annotated

import typer

from raycrt.cli.main import one_line
from raycrt.cli.options import (
    DEFAULT_RECIPE,
    DataDir,
    Download,
    Overrides,
    Recipe,
    spec_from,
)
from raycrt.errors import require
from raycrt.system import interruption, pipes
from raycrt.system.places import outputs
from raycrt.system.places.storage import Place, given, place

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    out: Annotated[
        Place,
        typer.Option(
            parser=str, help="An absolute path, or a URI, of storage that all nodes share."
        ),
    ],
    recipe: Recipe = DEFAULT_RECIPE,
    set_: Overrides = None,
    data_dir: DataDir = None,
    download: Download = False,
) -> None:
    """Search, train, certify and report as one job; exit code 2 if not all nodes share --out.

    Started again with the same --out, it resumes what is there.
    """
    with one_line(), interruption.reported(program="python -m raycrt.cluster.pipeline"):
        out = given(out)
        require(out.is_absolute(), "--out is an absolute path, on shared storage", out=str(out))
        spec = spec_from(recipe, set_, data_dir, download)
        outputs.made(out)
        from raycrt.distributed.session import session

        with session():
            check_shared(out)
            from raycrt.tuning import pipeline

            pipeline.run(spec, out)


def check_shared(out: Place) -> None:
    """Raise `InvalidInput` unless every node that is alive sees what this process writes to `out`.

    Nodes that join later are not checked.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    @ray.remote(num_cpus=0, max_retries=0)
    def sees(path: str) -> bool:
        return place(path).is_file()

    mark = out / f".shared-{uuid.uuid4().hex}"
    outputs.write_atomically(mark, b"")
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        answers = [
            sees.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(str(mark))
            for node in nodes
        ]
        blind = [
            node["NodeManagerAddress"]
            for node, seen in zip(nodes, ray.get(answers), strict=True)
            if not seen
        ]
    finally:
        mark.unlink()
    require(not blind, "--out is a directory that all nodes share", out=str(out), not_on=blind)


if __name__ == "__main__":
    pipes.outlive_readers()
    app()
