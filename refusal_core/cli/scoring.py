"""The verb ``score``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from refusal_core.cli.parameters import AsJson, Cache, Flat, Position, RunName, print_json, printable
from refusal_core.cli.prompts import Labels, TextColumn, print_left_out
from refusal_core.cli.reporting import ReporterArgument
from refusal_core.conversations import Prompt, prompts_of, turns_of
from refusal_core.errors import PromptError
from refusal_core.options import ModelOptions
from refusal_core.prompts.labels import Choice, parse_labels
from refusal_core.runs import store


def score(
    run: RunName,
    text: Annotated[str | None, Parameter(help="A prompt.")] = None,
    /,
    *,
    file: Annotated[
        str | None, Parameter(help="Prompts in a file of any kind that `refusal prompts` reads; labels are not scored.")
    ] = None,
    text_column: TextColumn = None,
    label: Labels = (),
    position: Position = "t_post",
    as_json: AsJson = False,
    where: Annotated[ModelOptions | None, Flat] = None,
    cache: Cache = None,
    reporter: ReporterArgument,
) -> None:
    """Project prompts on a run's direction at every site."""
    from refusal_core.cli.measuring import load_model_of
    from refusal_core.pipeline.scoring import score as score_prompts
    from refusal_core.prompts.sets import read_source

    if (text is None) == (file is None):
        raise PromptError("expected either a prompt or a file of prompts")
    opened = store.open_run(run, cache).at(position)
    chosen: list[Prompt] = [str(text)]
    if file is not None:
        prompts = read_source(file, Choice(text_column, labels=parse_labels(label)))
        print_left_out(prompts.report)
        chosen = prompts_of(prompts.table)
    with reporter.progress() as progress:
        scores = score_prompts(load_model_of(opened, where or ModelOptions()), opened, chosen, progress)
    if as_json:
        print_json([result.to_json() for result in scores])
        return
    for result in scores:
        turns = turns_of(result.prompt)
        said = [turn.content if len(turns) == 1 else f"{turn.role}: {turn.content}" for turn in turns]
        print(
            "\n".join(map(printable, said)) + "\n"
            f"    refusal log-odds {result.refusal_log_odds:.2f}, first token {result.first_token!r}"
        )
        for site in range(opened.n_sites):
            print(
                f"    {opened.site_label(site):>16}  {result.projection[site]:9.3f}  "
                f"percentile among harmful {result.percentile['harmful'][site]:5.1f}, "
                f"harmless {result.percentile['harmless'][site]:5.1f}"
            )
