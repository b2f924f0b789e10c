"""A local web page to search a folder's or a run's images on: give it an image, see what it finds."""

import os
import re
import socket

import numpy as np

from imgsim.extras.runs.saved import SavedRun
from imgsim.sources.decode import open_image
from imgsim.sources.errors import first_line, require

MAX_UPLOAD = "30mb"
KEPT = 600  # seconds after which what was uploaded or shown is deleted
HOSTS = ("127.0.0.1", "localhost")
START = "Give it an image: drop a file, paste one, or take an example."
CSS = """
.gradio-container { width: 100%; max-width: 70rem !important; margin: auto }
.matches .caption-label { inset: auto 0 0 0 !important; max-width: none !important; border-radius: 0 !important;
  padding: .2rem .5rem !important; white-space: normal !important; text-align: center; overflow-wrap: anywhere }
.matches .thumbnail-item .caption-label { opacity: 1 !important; -webkit-line-clamp: 3; overflow: hidden }
.matches .thumbnail-item img { box-sizing: border-box; padding-bottom: 2.8rem }
.matches .grid-wrap { max-height: none !important; min-height: 0 !important; overflow: visible !important }
footer { display: none !important }
@media (max-width: 640px) { .matches .grid-container { grid-template-columns: repeat(2, 1fr) !important } }
"""


class Answers:
    """What an index answers: images, words or ids in, pictures of the matches out, no page yet.

    Args:
        source: the folder of a run, or an open index with `title`, `index`, `encoder` and `picture`: a SavedRun, or a
            FolderIndex of the room find.
    """

    def __init__(self, source):
        self.source = SavedRun(source) if isinstance(source, (str, os.PathLike)) else source
        self.index, self.title, encoder = self.source.index, self.source.title, self.source.encoder
        rows = np.linspace(0, len(self.index) - 1, 6).astype(int)
        examples = [self.source.picture(number) for number in self.index.ids[rows].tolist()]
        self.examples = [display_copy(example[0]) for example in examples if example]
        self.embed = {"image": lambda image: encoder.embed([image]), "id": self.vector}
        if encoder.pooling == "joint space":  # a dual encoder: words find images, too
            from imgsim.extras.modalities.encoders import TextEncoder

            texts = TextEncoder(encoder)
            self.embed["words"] = lambda words: texts.embed([words])

    def vector(self, number: int) -> np.ndarray:
        """Return the vector (1, d) of the image with this id."""
        return self.index.vectors[self.index.ids == number]

    def find(self, kind: str, query, top_k: int, probes: int) -> tuple[list, str, list[int]]:
        """Find the images most like a query.

        Args:
            kind: "image", "words" or "id"; query: of that kind.
            top_k, probes: of the search.

        Returns:
            The matches as (image, caption), in words what the search did, and the matches' ids.
        """
        self.index.probes = int(probes)
        found = self.index.search(self.embed[kind](query), int(top_k))
        shown, ids, seen, count = [], [], int(found.candidates_seen[0]), len(self.index)
        matches = [pair for pair in zip(found.ids[0].tolist(), found.cosines[0], strict=True) if pair[0] >= 0]
        for number, cosine in matches:
            if picture := self.source.picture(number):
                image, caption, _ = picture
                shown.append((display_copy(image), f"{caption} · cosine {cosine:.2f}"))
                ids.append(number)
        model = self.source.picture(query) if kind == "id" else None
        like = f"Like {model[1]}: " if model else ""
        said = f"{like}**{seen:,} of {count:,} candidates seen** ({seen / count:.0%}), {len(shown)} shown."
        if lost := len(matches) - len(shown):
            said += f" {lost} found and not shown: their files have changed. Start the page again."
        return shown, said, ids


def display_copy(image, side: int = 320):
    """Return a small copy of an image: the page never gets a file of the dataset itself."""
    image = open_image(image)
    image.thumbnail((side, side))
    return image


def page(answers: Answers):
    """Build the page as Gradio's Blocks."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio

    def answer(asked, top_k, probes):
        try:
            shown, said, ids = [], START, []
            if asked and asked[1] not in ("", None):
                shown, said, ids = answers.find(*asked, top_k, probes)
        except ValueError as error:  # without the name of the temporary file
            said = "That did not work: " + re.sub(r"^.*cannot be read", "the file cannot be read", str(error))
        return gradio.Gallery(shown, selected_index=None, visible=bool(shown)), said, ids, hidden, hidden

    def choose(ids, event: gradio.SelectData):
        number = ids[event.index]
        picture = answers.source.picture(number)
        path = picture[2] if picture else ""
        return number, gradio.update(value=path, visible=bool(path)), gradio.update(visible=True)

    hidden = gradio.update(visible=False)
    with gradio.Blocks(title="imgsim", analytics_enabled=False, delete_cache=(60, KEPT)) as blocks:
        asked, ids, chosen = gradio.State(), gradio.State([]), gradio.State()
        gradio.Markdown(f"# Which images are like this one?\n{answers.title}, {len(answers.index):,} images")
        with gradio.Row():
            with gradio.Column(scale=1, min_width=280):
                words = gradio.Textbox(label="Words", visible="words" in answers.embed)
                query = gradio.Image(type="filepath", sources=["upload", "clipboard"], label="Your image", height=260)
                # The file as it came: if it cannot be read, open_image says so in words.
                query.preprocess = lambda payload: payload.path if payload else None
            with gradio.Column(scale=2, min_width=280):
                said = gradio.Markdown(START, elem_id="said")
                gallery = gradio.Gallery(
                    visible=False,
                    show_label=False,
                    buttons=[],
                    columns=4,
                    height="auto",
                    object_fit="contain",
                    elem_classes="matches",
                    allow_preview=False,
                )
                path = gradio.Textbox(
                    label="Its file", elem_id="path", buttons=["copy"], interactive=False, visible=False
                )
                more = gradio.Button("Find more like this one", visible=False)
        with gradio.Accordion("Settings", open=False):
            top_k = gradio.Slider(1, 24, 8, step=1, label="Matches shown (top_k)")
            info = "Extra buckets looked up in every table: more of them, more candidates seen."
            most = max(64, answers.index.probes)
            probes = gradio.Slider(0, most, answers.index.probes, step=1, label="Probes", info=info)
        gradio.Examples(answers.examples, query, label="Or take an example")
        for event, given, kind in (
            (query.change, query, "image"),
            (words.submit, words, "words"),
            (more.click, chosen, "id"),
        ):
            event(lambda value, kind=kind: (kind, value), given, asked, api_name=False)
        for event in (asked.change, top_k.change, probes.change):
            event(answer, [asked, top_k, probes], [gallery, said, ids, path, more], api_name=False)
        gallery.select(choose, ids, [chosen, path, more], api_name=False)
    return blocks


def launch(blocks, **settings) -> None:
    """Start the page; the settings go to Gradio's launch: server_name, server_port, ..."""
    private = {"share": False, "enable_monitoring": False, "footer_links": [], "ssr_mode": False}
    blocks.launch(**private, quiet=True, max_file_size=MAX_UPLOAD, css=CSS, **settings)


def check_page(port: int) -> None:
    """Raise a ValueError if Gradio is not installed, or a page cannot listen on this port."""
    require(("gradio",), "demo")
    try:
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, os.name == "posix")
            trial.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        said = first_line(error).rstrip(".")
        raise ValueError(f"The page cannot listen on port {port}: {said}. Take another --port.") from error


def serve(source, port: int = 7860, block: bool = True):
    """Serve the page of an index, see `Answers`, on 127.0.0.1, by default until it is interrupted.

    Requests under another host's name are refused: a page from elsewhere may have sent them.

    Returns:
        Its Blocks, to be closed.

    Raises:
        ValueError: see `check_page`; or the folder holds no run with an index.
    """
    check_page(port)
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    blocks, guard = page(Answers(source)), Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)
    print(f"The page: http://127.0.0.1:{port} (Ctrl+C ends it)", flush=True)
    settings = {"server_name": "127.0.0.1", "server_port": port, "app_kwargs": {"middleware": [guard]}}
    launch(blocks, prevent_thread_lock=not block, **settings)
    return blocks
