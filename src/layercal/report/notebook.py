"""What the report's notebook shows of results, a line of it each."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
from IPython.display import HTML, Markdown, display

from layercal.report import figures, pages, tables, words
from layercal.results import Results
from layercal.steering.dimensions import in_words
from layercal.steering.steered import MODES
from layercal.steering.verdicts import CHOSEN


class Report:
    """Shows the results of one model on one question set in a notebook.

    Parameters
    ----------
    results : Results
    """

    def __init__(self, results: Results):
        self.results = results
        results.check()
        self.verdicts = results.verdicts
        self.primary = self.verdicts["direction"].iloc[0]
        self.kinds = list(self.verdicts["kind"].unique())

    def heading(self, text: str) -> None:
        """Show Markdown."""
        display(Markdown(text))

    def say(self, *texts: str) -> None:
        """Show paragraphs of plain text."""
        display(HTML(pages.render("paragraphs.html", texts=texts)))

    def list(self, texts: Iterable[str]) -> None:
        """Show plain texts as a list."""
        display(HTML(pages.render("bullets.html", texts=texts)))

    def table(self, frame: pd.DataFrame) -> None:
        """Show a table."""
        display(HTML(pages.table(frame)))

    def figures(self, section: str) -> None:
        """Show the drawn figures of a section; where one has nothing to show, it says why."""
        for name, entry in figures.REGISTRY.items():
            if entry.section == section:
                png = self.results.figure(name).read_bytes()
                stem = f"figures/{self.results.questions}/{name}"
                links = {"PDF": f"{stem}.pdf", "data (CSV)": f"{stem}.csv"}
                display(HTML(pages.image(png, entry.caption, links)))

    def title(self) -> None:
        """Name the model and the questions."""
        self.heading(f"# {self.results.model} on {self.results.questions}")

    def claims(self) -> None:
        """Show what the study says of the paper's claims, and on what it rests."""
        listed = self.results.claims
        self.table(tables.claims(listed))
        evidence = words.claims(listed)
        self.say("In words:" if evidence else listed["evidence"].iloc[0])
        self.list(evidence)

    def directions(self) -> None:
        """Show how alike directions and folds are."""
        self.table(tables.described(self.results.directions, self.primary))

    def dimensions(self) -> None:
        """Say what the correction's dimensions bring, if there is a correction."""
        if self.results.phase["exists"]:
            table = self.results.dimensions
            self.say(*(in_words(table, layer) for layer in table["layer"].unique()))

    def steering(self) -> None:
        """Show what steering does in each mode that was part of the study."""
        of_all = self.verdicts[self.verdicts["group"].eq("all")]
        for mode, rows in of_all.groupby("mode", sort=False):
            label, acts = MODES[mode].label, MODES[mode].acts
            self.heading(f"### {label[0].upper()}{label[1:]} (`{mode}`)\n\n{acts}")
            self._mode(mode, rows)

    def _mode(self, mode: str, rows: pd.DataFrame) -> None:
        if not self.results.phase["exists"]:
            self.say(
                "No correction phase is claimed for this model; the curves are shown as a "
                "control, and no change here is a finding about calibration."
            )
        self.list(rows.loc[rows["direction"] == self.primary, "verdict"])
        self.figures(mode)
        if CHOSEN in set(rows["layer_choice"]):
            at = rows["layer_choice"].eq(CHOSEN) | rows["kind"].eq("baseline")
            self.say("All directions, the layer chosen together with the scale on other questions:")
        else:
            at = rows["layer"].eq(rows["layer"].iloc[0])
            self.say(f"All directions at layer {rows['layer'].iloc[0]}:")
        first = rows[at].iloc[0]
        self.say(f"Before: NLL {first['nll_before']:.3f}, ECE {first['ece_before']:.3f}.")
        self.table(tables.comparison(rows[at], self.kinds))

    def by_language(self) -> None:
        """Show what steering through the network does in each language, if there are several."""
        rows = self.verdicts[
            self.verdicts["group_kind"].eq("language")
            & (self.verdicts["direction"].eq(self.primary) | self.verdicts["kind"].eq("transfer"))
            & self.verdicts["layer_choice"].eq(CHOSEN)
            & self.verdicts["mode"].eq("through-network")
        ]
        if len(rows):
            self.heading("### By language, through the network")
        for group, of_group in rows.groupby("group_name"):
            ece, n = of_group[["ece_before", "n"]].iloc[0]
            self.say(f"{group}: ECE before {ece:.3f}, n = {n:.0f}")
            self.table(tables.comparison(of_group, self.kinds))

    def neurons(self) -> None:
        """Show what entropy neurons do, if they can be told."""
        table = self.results.neurons
        if len(table):
            self.table(tables.neurons(table))
            self.say(words.random_neurons(table))

    def provenance(self) -> None:
        """Show how the tables were made."""
        made = words.how_it_was_made(self.results)
        if made:
            self.list(made)
        else:
            self.say("Not recorded in this working copy.")
