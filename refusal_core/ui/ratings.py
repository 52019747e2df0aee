"""The parts of the Ratings page, and of the page on which a person rates prompts blind."""

from __future__ import annotations

import hashlib

import pandas as pd
import streamlit as st

from refusal_core.annotations import raters, ratings
from refusal_core.annotations.csv_files import column_names
from refusal_core.annotations.ratings import Ratings
from refusal_core.conversations import prompts_of
from refusal_core.errors import RefusalError
from refusal_core.exploration.outliers import row_of
from refusal_core.figures import ratings as figures
from refusal_core.glossary import meaning_of, name_of
from refusal_core.runs.run import Run
from refusal_core.ui import address
from refusal_core.ui.conversations import written_out
from refusal_core.ui.layout import chart, identity, sentences, show_error
from refusal_core.ui.numbers import numbers_table
from refusal_core.ui.selection import chosen_row, newly
from refusal_core.ui.server import may_change, person, require_owner, told
from refusal_core.ui.uploads import annotation_file, read_sent

_RATER, _SHOWN, _BACK = "rate_rater", "rate_shown", "rate_back"
_SKIPPED, _FAILED = "rate_skipped", "rate_failed"
_BATCH, _SIZE, _WANTED = "rate_batch", "rate_size", "rate_wanted"
_BATCHES = {30: "30, balanced", 60: "60, balanced", 0: "all prompts"}
"""How many prompts a rater is asked for, 0 for all of the run's."""
_COLLECTED, _FILE = "Collected here", "From a csv file"
_DISAGREEMENTS = {
    "text": st.column_config.TextColumn("prompt", width=420),
    "rating": st.column_config.NumberColumn("rating", format="%.2f", help="Mean over raters."),
    "n_raters": st.column_config.NumberColumn("raters", width="small"),
    "projection": st.column_config.NumberColumn(
        "projection", format="%.3f", help="In activation units, at this layer."
    ),
    "difference": st.column_config.NumberColumn(
        "rank difference",
        format="%+.0f",
        help="Percentile of the rating less percentile of the projection among the rated prompts. Above 0: people find "
        "it more harmful than its projection says.",
    ),
    "label": st.column_config.TextColumn("label", width="small"),
    "category": st.column_config.TextColumn("category"),
    "source": st.column_config.TextColumn("set", width="small"),
}


def chosen_ratings(run: Run) -> Ratings:
    """Return the ratings to compare with; without any the page ends with where to get some."""
    chosen = st.segmented_control(
        "Ratings",
        [_COLLECTED, _FILE],
        default=_COLLECTED,
        key="ratings_source",
        help="Those given blind on the page Rate prompts, or a csv with a rating column.",
    )
    try:
        chosen_ratings = ratings.ratings_of_run(run, _uploaded() if chosen == _FILE else raters.load_all_ratings())
    except RefusalError as error:
        show_error("These ratings cannot be used.", error)
        st.stop()
    if chosen_ratings.table.empty and chosen == _FILE:
        st.info(
            "No prompt of this run is rated in this file. Ratings join by prompt_id, or by a prompt's exact text.",
            icon=":material/link_off:",
        )
        st.text(ratings.describe_left_out(chosen_ratings))
        st.stop()
    if chosen_ratings.table.empty:
        st.info(
            "Nobody has rated prompts of this run here yet. Rate some blind, or compare with a csv file of ratings.",
            icon=":material/rate_review:",
        )
        st.page_link("pages/8_Rate.py", label="Rate prompts", icon=":material/rate_review:", width="content")
        st.stop()
    return chosen_ratings


def overview(chosen: Ratings) -> None:
    """Show how many prompts are rated, by how many people, and how far they agree."""
    prompts, people, alpha = st.columns(3)
    agreement = ratings.krippendorff_alpha(chosen)
    prompts.metric("prompts rated", chosen.n_prompts, help="Of this run's prompts, by at least one rater.")
    people.metric("raters", chosen.n_raters, help="Different names or codes among these ratings.")
    alpha.metric(
        name_of("alpha"),
        "–" if pd.isna(agreement) else f"{agreement:.2f}",
        help=f"{meaning_of('alpha')} It needs prompts that two people rated.",
    )
    if missing := ratings.describe_left_out(chosen):
        st.text(missing)


def over_layers(run: Run, chosen: Ratings, site: int) -> None:
    """Show the correlation over the layers, in words and as a figure."""
    numbers = _by_site(run.run_id, hashlib.sha256(ratings.to_csv(chosen)).hexdigest(), run, chosen)
    st.markdown(sentences(ratings.describe_correlations(run, numbers, site)))
    if numbers["rho"].isna().all():
        st.info(
            f"A correlation needs at least {ratings.MINIMUM} rated prompts of a kind, not all rated the same.",
            icon=":material/hourglass_empty:",
        )
        return
    chart(figures.over_layers(run, numbers, site), "ratings_rho")
    st.caption(
        "Rank correlation of projection and mean rating, with 95 % intervals over prompts. Grey: labels together, on "
        "prompts the direction was mostly fitted on. Pink: the transfer sets, which it was not."
    )
    with st.expander("The numbers", icon=":material/table_rows:"):
        here = numbers[numbers["site"].eq(site)]
        numbers_table(here.drop(columns="site"))


def scatter(run: Run, rated: pd.DataFrame, site: int) -> int | None:
    """Show the scatter plot of rated prompts; return the row of a point that was just clicked."""
    event = chart(
        figures.against_rating(run, rated, site),
        f"ratings_scatter_{run.run_id}_{site}",
        on_select="rerun",
        selection_mode="points",
    )
    points = event["selection"]["points"]
    return newly("ratings_scatter", int(points[0]["customdata"][0]) if points else None)


def disagreement_list(run: Run, rated: pd.DataFrame) -> int | None:
    """List the rated prompts, largest disagreement first; return the row of the run that was just chosen."""
    return chosen_row(rated, _DISAGREEMENTS, "ratings_disagreements", row_of(run, address.view().prompt))


def download(chosen: Ratings) -> None:
    """Offer the ratings as csv."""
    st.download_button(
        "Download as csv", ratings.to_csv(chosen), "ratings.csv", mime="text/csv", icon=":material/download:"
    )


def rater() -> str:
    """Return the rater's name; until one is given the page ends with a field for it."""
    if not may_change():
        st.info("Ratings are saved here, which is the owner's to do.", icon=":material/lock:")
        st.stop()
    if _RATER not in st.session_state:
        with st.form("rate_who", width=520):
            if typed := person():
                st.text(f"Ratings are saved under {typed}.")
            else:
                typed = st.text_input("Your name, or a code", max_chars=raters.LONGEST_NAME)
                st.caption("Ratings are saved under it. Give the same one to continue where you stopped.")
            size = _size_field()
            if st.form_submit_button("Begin", type="primary"):
                try:
                    st.session_state[_RATER] = raters.normalise_name(typed)
                    st.session_state[_WANTED] = size
                    st.rerun()
                except RefusalError as error:
                    st.text(told(error))
        st.stop()
    return str(st.session_state[_RATER])


def rate_prompts(run: Run, name: str) -> bool:
    """Show one prompt, the scale, and buttons to go back and to skip; return whether a batch is under way."""
    try:
        given = raters.load_ratings_by(name).table.set_index("prompt_id")["rating"]
    except RefusalError as error:
        show_error("Your earlier ratings cannot be read.", error)
        st.stop()
    prompts = run.prompts.loc[raters.rating_order(run, name)]
    of_run = int(prompts["prompt_id"].isin(given.index).sum())
    batch = _batch(run, name, given.index)
    if batch is not None:
        prompts = prompts[prompts["prompt_id"].isin(batch)]
    texts = pd.Series([written_out(prompt) for prompt in prompts_of(prompts)], index=prompts["prompt_id"])
    done = [prompt_id for prompt_id in given.index if prompt_id in texts.index]
    st.progress(len(done) / max(len(texts), 1), text=f"{len(done)} of {len(texts)} rated")
    if failed := st.session_state.pop(_FAILED, None):
        show_error("This rating was not saved.", failed)
    back = st.session_state.get(_BACK)
    corrected = back if back in done else None
    shown = corrected or _next(list(texts.index), done)
    if shown is None and batch is not None:
        st.success(f"{len(done)} rated: this batch is done. Thank you.", icon=":material/task_alt:")
        st.markdown(_bought(of_run))
        _another_batch()
    elif shown is None:
        st.success("You have rated every prompt of this run. Thank you.", icon=":material/task_alt:")
    else:
        st.markdown(f"**{raters.QUESTION}**")
        # One height, so that the buttons stay under the hand.
        with st.container(height=170, border=True):
            st.text(texts[shown])
        _scale(name, shown, texts[shown], given.get(shown))
    earlier = done[: done.index(corrected)] if corrected else done
    with st.container(horizontal=True):
        st.button(
            "Back",
            icon=":material/undo:",
            shortcut="B",
            help="See the prompt you rated before this one again, to correct it.",
            disabled=not earlier,
            on_click=_go_back,
            args=(earlier[-1] if earlier else None,),
        )
        if corrected:
            st.button("Leave it", icon=":material/redo:", shortcut="S", on_click=_go_back, args=(None,))
        elif shown is not None:
            st.button(
                "Skip",
                icon=":material/skip_next:",
                shortcut="S",
                key=f"rate_skip_{shown}",
                help="Comes again at the end.",
                on_click=_skip,
                args=(shown,),
            )
        if batch is not None and shown is not None:
            st.button("End the batch", icon=":material/stop:", type="tertiary", on_click=_end_batch, args=(done,))
    if batch is not None and shown is not None:
        st.caption(_bought(of_run - len(done) + len(texts), "With this batch"))
        return True
    return False


def _size_field() -> int:
    size = st.segmented_control(
        "How many",
        list(_BATCHES),
        format_func=_BATCHES.__getitem__,
        default=30,
        required=True,
        key=_SIZE,
        help="Balanced: as many of every kind of prompt, in random order. Prompts of the band are a larger share of a "
        "balanced batch than of the run, so that its correlation is lower than that of all prompts would be.",
    )
    return int(size or 0)


def _another_batch() -> None:
    size = _size_field()
    st.button("Go on", type="primary", icon=":material/play_arrow:", on_click=_begin_batch, args=(size,))


def _begin_batch(size: int) -> None:
    """Forget the batch, so that the next one is drawn among what is left."""
    st.session_state[_WANTED] = size
    st.session_state.pop(_BATCH, None)


def _end_batch(done: list[str]) -> None:
    """Leave out of the batch what is not rated yet."""
    of, size, _ = st.session_state[_BATCH]
    st.session_state[_BATCH] = of, size, tuple(done)


def _batch(run: Run, name: str, rated: pd.Index) -> list[str] | None:
    """Return the ids of the rater's batch on this run, drawn when it begins; ``None`` where all prompts are asked."""
    of, size, ids = st.session_state.get(_BATCH, (None, 0, ()))
    if of != (identity(run), name):
        # Not the field's own value, which ends with the field, while another run asks for a batch of the same size.
        size = int(st.session_state.get(_WANTED, 0))
        ids = tuple(raters.balanced_batch(run, name, set(rated), size)) if size else ()
        # Of a run that is rated completely there is no batch.
        size = size if ids else 0
        st.session_state[_BATCH] = (identity(run), name), size, ids
    return list(ids) if size else None


def _bought(n_rated: int, when: str = "Now") -> str:
    """Return how well a correlation is known of so many rated prompts, in a sentence."""
    margin = ratings.correlation_margin(n_rated)
    if pd.isna(margin):
        return f"{when} {n_rated} prompts of this run are rated."
    within = ratings.correlation_margin(n_rated // 2)
    label = "not known" if pd.isna(within) else f"known to about ±{within:.2f}"
    return (
        f"{when} {n_rated} prompts of this run are rated: a rank correlation over both labels is known to about "
        f"±{margin:.2f} (95 %), one within a label, of half of them, is {label}."
    )


def about_rater(name: str) -> None:
    """Show who is rating, and offer the ratings as csv."""
    st.space("small")
    st.text(f"Rating as {name}")
    with st.container(horizontal=True):
        if not person():
            st.button("Someone else", icon=":material/switch_account:", on_click=_leave)
        for label, file_name, read in (
            ("Download my ratings", "my-ratings.csv", lambda: raters.load_ratings_by(name)),
            ("Download everyone's", "ratings.csv", raters.load_all_ratings),
        ):
            try:
                content = ratings.to_csv(read())  # type: ignore[no-untyped-call]
            except RefusalError as error:
                st.text(told(error))
            else:
                st.download_button(
                    label, content, file_name, mime="text/csv", icon=":material/download:", on_click="ignore"
                )


def _uploaded() -> Ratings:
    """Return the ratings of the uploaded file; until there is one the page ends with a field for it."""
    file = annotation_file("A csv with a rating column, and a prompt_id or text column to join by", "ratings_file")
    if file is None:
        st.stop()
    names = read_sent(column_names, file.name, file.getvalue())
    by_name = {name.strip().lower(): place for place, name in enumerate(names)}
    rating, person = st.columns(2)
    # Another file has other columns.
    rating_column = rating.selectbox(
        "Rating column", names, index=by_name.get("rating"), key=f"ratings_rating_column_{file.file_id}"
    )
    rater_column = person.selectbox(
        "Rater column",
        names,
        index=by_name.get("rater"),
        key=f"ratings_rater_column_{file.file_id}",
        placeholder="one rater",
    )
    if rating_column is None:
        st.info("Choose the column that holds the ratings.", icon=":material/table_view:")
        st.stop()
    return read_sent(ratings.read_ratings, file.name, file.getvalue(), rating_column, rater_column)


def _scale(name: str, prompt_id: str, text: str, given: float | None) -> None:
    """Show seven buttons that belong to one prompt, so that a key pressed twice cannot rate the next one unread."""
    st.session_state[_SHOWN] = prompt_id
    with st.container(horizontal=True, gap="small", key="rate_scale"):
        for rating, meaning in raters.SCALE.items():
            # The button shows its key, which is the number.
            st.button(
                meaning,
                key=f"rate_{rating}_{prompt_id}",
                type="primary" if rating == given else "secondary",
                shortcut=str(rating),
                width="stretch",
                on_click=_rate,
                args=(name, prompt_id, text, rating),
            )


def _next(prompts: list[str], done: list[str]) -> str | None:
    """Return the rater's next prompt: skipped ones come after all others, in the order of their last skip."""
    skipped = st.session_state.get(_SKIPPED, [])
    waiting = [prompt_id for prompt_id in prompts if prompt_id not in set(done)]
    waiting.sort(key=lambda prompt_id: skipped.index(prompt_id) if prompt_id in skipped else -1)
    return waiting[0] if waiting else None


def _rate(name: str, prompt_id: str, text: str, rating: int) -> None:
    # A key may still reach the buttons of the prompt before, which the browser keeps until the page is drawn.
    if st.session_state.get(_SHOWN) != prompt_id:
        return
    st.session_state[_SHOWN] = None
    try:
        require_owner()
        raters.save_rating(name, prompt_id, text, rating)
        _go_back(None)
    except RefusalError as error:
        st.session_state[_FAILED] = str(error)


def _skip(prompt_id: str) -> None:
    skipped = [other for other in st.session_state.get(_SKIPPED, []) if other != prompt_id]
    st.session_state[_SKIPPED] = [*skipped, prompt_id]


def _go_back(prompt_id: str | None) -> None:
    st.session_state[_BACK] = prompt_id


def _leave() -> None:
    for key in (_RATER, _BACK, _SKIPPED, _BATCH):
        st.session_state.pop(key, None)


@st.cache_data(max_entries=8, show_spinner="Comparing ratings with projections …")
def _by_site(run_id: str, sha256: str, _run: Run, _ratings: Ratings) -> pd.DataFrame:
    return ratings.correlation_by_site(_run, _ratings)
