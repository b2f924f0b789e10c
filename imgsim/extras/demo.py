"""A page on this machine to try a run's index on: give it an image, see what it finds."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np

from imgsim.extras.runs.saved import pinned, read_run
from imgsim.images import candidates_and_queries, load_images
from imgsim.index import BuildLSHTable
from imgsim.sources.decode import open_image
from imgsim.sources.errors import require

LARGEST = "30mb"  # of an upload
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
    """A run's index with its candidates and a few queries as examples: images or words in, matches out, no page yet."""

    def __init__(self, folder):
        folder, kept = Path(folder), read_run(folder)
        if not (folder / "index").exists():
            raise ValueError(f"{str(folder)!r} holds no index; a point of a sweep keeps none, a run does.")
        from imgsim.encoder import load_encoder  # torch

        settings = pinned(kept)
        self.names = json.loads((folder / "images.json").read_text(encoding="utf-8"))["labels"]
        encoder = load_encoder(settings["checkpoint"], dtype=settings["dtype"])
        self.index = BuildLSHTable.load(folder / "index", encoder)
        self.candidates, queries = candidates_and_queries(load_images(settings["dataset"]), settings["seed"])
        self.examples = [small(queries[int(row)]["image"]) for row in np.linspace(0, len(queries) - 1, 6)]
        self.title = " · ".join(Path(settings[name]).name for name in ("dataset", "checkpoint"))
        self.texts = None
        if encoder.pooling == "joint space":  # a dual encoder: words find images, too
            from imgsim.extras.modalities.encoders import TextEncoder

            self.texts = TextEncoder(encoder)

    def by_image(self, image, top_k: int, probes: int) -> tuple[list, str]:
        """The images most like one, as (image, caption), and in words what the search did."""
        self.index.probes = int(probes)
        matches = self.index.query(image, int(top_k), verbose=False)
        said = [
            f"cosine {cosine:.2f}, overlap {overlap:.1f}"
            for cosine, overlap in zip(matches.cosine, matches.overlap, strict=True)
        ]
        return self.shown(matches.ids, said, matches.candidates)

    def by_words(self, words: str, top_k: int, probes: int) -> tuple[list, str]:
        """The images that words describe, in the same way."""
        self.index.probes = int(probes)
        found = self.index.search(self.texts.embed([words]), int(top_k))
        ids = found.ids[0][found.ids[0] >= 0]
        said = [f"cosine {cosine:.2f}" for cosine in found.cosines[0][: len(ids)]]
        return self.shown(ids, said, int(found.candidates_seen[0]))

    def shown(self, ids: np.ndarray, said: list[str], seen: int) -> tuple[list, str]:
        labels, count, pictures = self.index.labels, len(self.index), []
        for i, words in zip(ids.tolist(), said, strict=True):
            name = self.names[labels[i]] if self.names and labels[i] >= 0 else f"image {i}"
            pictures.append((small(self.candidates[i]["image"]), f"{name} · {words}"))
        return pictures, f"**{seen:,} of {count:,} candidates seen** ({seen / count:.0%}), {len(pictures)} shown."


def small(image, side: int = 320):
    """An image as it is shown: a file of the data set is never handed to the page itself."""
    image = open_image(image)
    image.thumbnail((side, side))
    return image


def page(answers: Answers):
    """The page as Gradio's Blocks."""
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
                # The file as it came: where it cannot be read, open_image says so in words.
                query.preprocess = lambda payload: payload.path if payload else None
                words = gradio.Textbox(
                    label="Or in words", info="Emptied, the image counts again.", visible=answers.texts is not None
                )
                top_k = gradio.Slider(1, 24, 8, step=1, label="Matches shown (top_k)")
                probes = gradio.Slider(
                    0,
                    64,
                    answers.index.probes,
                    step=1,
                    label="Probes",
                    info="Further buckets looked up in every table: more of them, more candidates seen.",
                )
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
    """Start the page; settings go to Gradio's launch: server_name, server_port, ..."""
    private = {"share": False, "enable_monitoring": False, "footer_links": [], "ssr_mode": False}
    blocks.launch(**private, quiet=True, max_file_size=LARGEST, css=CSS, **settings)


def serve(folder, port: int = 7860, block: bool = True):
    """Serve the page of a run on 127.0.0.1 until it is interrupted; returns its Blocks where it does not block."""
    require(("gradio",), "demo")
    blocks = page(Answers(folder))
    print(f"The page: http://127.0.0.1:{port} (Ctrl+C ends it)", flush=True)
    launch(blocks, server_name="127.0.0.1", server_port=port, prevent_thread_lock=not block)
    return blocks
