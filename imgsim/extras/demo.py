"""A local web page to try a run's index on: give it an image, see what it finds."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from imgsim.extras.runs.saved import SavedRun
from imgsim.sources.decode import open_image
from imgsim.sources.errors import require

MAX_UPLOAD = "30mb"
START = "Give it an image: drop a file, paste one, or take an example."
CSS = """
.gradio-container { max-width: 70rem !important; margin: auto }
.matches .caption-label { inset: auto 0 0 0 !important; max-width: none !important; border-radius: 0 !important;
  padding: .2rem .5rem !important; white-space: normal !important; text-align: center }
.matches .thumbnail-item img { box-sizing: border-box; padding-bottom: 2.8rem }
.matches .grid-wrap { max-height: none !important; min-height: 0 !important; overflow: visible !important }
footer { display: none !important }
@media (max-width: 640px) { .matches .grid-container { grid-template-columns: repeat(2, 1fr) !important } }
"""


class Answers:
    """What a run's index answers: images or words in, pictures of the matches out, no page yet."""

    def __init__(self, folder):
        self.run = SavedRun(folder)
        self.index, settings = self.run.index, self.run.settings
        self.candidates, queries = self.run.images()
        self.examples = [display_copy(queries[int(row)]["image"]) for row in np.linspace(0, len(queries) - 1, 6)]
        self.title = " · ".join(Path(settings[name]).name for name in ("dataset", "checkpoint"))
        self.texts = None
        if self.index.encoder.pooling == "joint space":  # a dual encoder: words find images, too
            from imgsim.extras.modalities.encoders import TextEncoder

            self.texts = TextEncoder(self.index.encoder)

    def by_image(self, image, top_k: int, probes: int) -> tuple[list, str]:
        """Find the images most like one; return them as (image, caption), and in words what the search did."""
        self.index.probes = int(probes)
        matches = self.index.query(image, int(top_k), verbose=False)
        pairs = zip(matches.cosine, matches.overlap, strict=True)
        scores = [f"cosine {cosine:.2f}, overlap {overlap:.1f}" for cosine, overlap in pairs]
        return self.pictures(matches.ids, scores, matches.candidates)

    def by_words(self, words: str, top_k: int, probes: int) -> tuple[list, str]:
        """Find the images that words describe, in the same way."""
        self.index.probes = int(probes)
        found = self.index.search(self.texts.embed([words]), int(top_k))
        ids = found.ids[0][found.ids[0] >= 0]
        scores = [f"cosine {cosine:.2f}" for cosine in found.cosines[0][: len(ids)]]
        return self.pictures(ids, scores, int(found.candidates_seen[0]))

    def pictures(self, ids: np.ndarray, scores: list[str], seen: int) -> tuple[list, str]:
        """Return the candidates with these ids (t,) as (image, caption), and how many were seen."""
        shown, count = [], len(self.index)
        for i, score in zip(ids.tolist(), scores, strict=True):
            name = self.run.label_name(self.index.labels[i]) or f"image {i}"
            shown.append((display_copy(self.candidates[i]["image"]), f"{name} · {score}"))
        return shown, f"**{seen:,} of {count:,} candidates seen** ({seen / count:.0%}), {len(shown)} shown."


def display_copy(image, side: int = 320):
    """Return a small copy of an image: the page never gets a file of the dataset itself."""
    image = open_image(image)
    image.thumbnail((side, side))
    return image


def page(answers: Answers):
    """Build the page as Gradio's Blocks."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio

    def answer(upload, words, top_k, probes):
        try:
            if words and words.strip():
                return answers.by_words(words, top_k, probes)
            return answers.by_image(upload, top_k, probes) if upload else ([], START)
        except ValueError as error:  # without the name of the temporary file
            return [], f"That did not work: {re.sub(r'^.*cannot be read', 'the file cannot be read', str(error))}"

    with gradio.Blocks(title="imgsim", analytics_enabled=False) as blocks:
        gradio.Markdown(f"# Which images are like this one?\n{answers.title}, {len(answers.index):,} images")
        with gradio.Row():
            with gradio.Column(scale=1, min_width=280):
                query = gradio.Image(type="filepath", sources=["upload", "clipboard"], label="Your image", height=260)
                # The file as it came: if it cannot be read, open_image says so in words.
                query.preprocess = lambda payload: payload.path if payload else None
                words = gradio.Textbox(
                    label="Or in words", info="Emptied, the image counts again.", visible=answers.texts is not None
                )
                top_k = gradio.Slider(1, 24, 8, step=1, label="Matches shown (top_k)")
                info = "Extra buckets looked up in every table: more of them, more candidates seen."
                probes = gradio.Slider(0, 64, answers.index.probes, step=1, label="Probes", info=info)
                gradio.Examples(answers.examples, query, label="Or take an example")
            with gradio.Column(scale=2, min_width=280):
                said = gradio.Markdown(START, elem_id="said")
                gallery = gradio.Gallery(
                    show_label=False, buttons=[], columns=4, height="auto", object_fit="contain", elem_classes="matches"
                )
        for event in (query.change, words.submit, top_k.change, probes.change):
            event(answer, [query, words, top_k, probes], [gallery, said], api_name=False)
    return blocks


def launch(blocks, **settings) -> None:
    """Start the page; the settings go to Gradio's launch: server_name, server_port, ..."""
    private = {"share": False, "enable_monitoring": False, "footer_links": [], "ssr_mode": False}
    blocks.launch(**private, quiet=True, max_file_size=MAX_UPLOAD, css=CSS, **settings)


def serve(folder, port: int = 7860, block: bool = True):
    """Serve the page of a run on 127.0.0.1, by default until it is interrupted; return its Blocks, to be closed.

    Raises:
        ValueError: Gradio is not installed, or the folder holds no run with an index.
    """
    require(("gradio",), "demo")
    blocks = page(Answers(folder))
    print(f"The page: http://127.0.0.1:{port} (Ctrl+C ends it)", flush=True)
    launch(blocks, server_name="127.0.0.1", server_port=port, prevent_thread_lock=not block)
    return blocks
