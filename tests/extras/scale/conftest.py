"""What the tests of a room share: a store that speaks S3 and fails when it is told to, and a comparison."""

import threading
import time
from collections import Counter

import numpy as np
import pytest

from imgsim.extras.scale.index import ShardedIndex
from imgsim.extras.scale.shards import Shards


class Store:
    """moto's server behind a gate that counts what passes, and lets some of it fail.

    Attributes:
        requests, bytes: answered so far, by method; and sent.
        fails: a function of method and path that gives "5xx", "slow", "gone" or nothing.
    """

    def __init__(self):
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            protocol_version = "HTTP/1.1"

            def log(self, *_):
                pass

        self.app = DomainDispatcherApplication(create_backend_app)
        self.server = make_server("127.0.0.1", 0, self.answer, threaded=True, request_handler=Quiet)
        self.server.daemon_threads = True
        self.lock, self.fails = threading.Lock(), None
        self.reset()
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def reset(self):
        self.requests, self.bytes, self.failed = Counter(), 0, Counter()

    def answer(self, environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        how = self.fails and self.fails(method, path)
        with self.lock:
            self.requests[method] += 1
            self.failed[how] += bool(how)
        if how == "slow":
            time.sleep(3)
        if how in ("5xx", "gone"):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            code, name = ("500 Internal Server Error", "InternalError") if how == "5xx" else ("404 No", "NoSuchKey")
            body = f"<?xml version='1.0'?><Error><Code>{name}</Code><Message>{name}</Message></Error>".encode()
            start_response(code, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [b"" if method == "HEAD" else body]
        body = b"".join(self.app(environ, start_response))
        with self.lock:
            self.bytes += len(body)
        return [body]


def rows_of(folder):
    """All (table, hash, id) rows that a folder's manifest stands for, in order."""
    tables = Shards.at(folder, "index")
    manifest, rows = tables.manifest(), []
    for file in manifest["files"]:
        if "place" in file:
            part = tables.read(file["name"])
            table = np.full(len(part), file["place"] >> manifest["top"])
            rows.append(np.stack([table, part["hash"].to_numpy(), part["id"].to_numpy()]))
    return np.concatenate(rows, axis=1).astype(np.int64)


@pytest.fixture(scope="session")
def assert_same(clear):
    """A function that asserts: the tables on disk hold the rows of an index in memory, and searches give the same.

    All but ties: shards are hashed one by one, and sums rounded otherwise may turn the sign of what lies on a plane.
    """

    def compare(folder, index, queries):
        table, codes, ids = rows_of(folder)
        np.testing.assert_array_equal(np.lexsort((ids, codes, table)), np.arange(index.num_tables * len(index)))
        place, row = np.lexsort((ids, table)).reshape(index.num_tables, -1), np.argsort(index.ids)
        assert (table[place] == np.arange(index.num_tables)[:, None]).all() and (ids[place] == index.ids[row]).all()
        same = index.lsh.codes[row] == codes[place].T
        assert same[clear(index.projection, index.vectors[row])].all() and same.mean() > 0.999
        sharded = ShardedIndex(folder, probes=index.probes, rerank=index.rerank)
        expected, found = index.search(queries), sharded.search(queries)
        same = expected.ids == found.ids
        np.testing.assert_array_equal(expected.cosines[same], found.cosines[same])
        assert same.mean() > 0.95
        for name in ("candidates_seen", "compared_exactly"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0.01, atol=1)

    return compare


@pytest.fixture(scope="session")
def store():
    """A running store, which all processes that are started find by their environment."""
    for package in ("moto", "s3fs"):
        pytest.importorskip(package, reason="the extra test is not installed")
    store = Store()
    settings = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{store.server.server_port}", "AWS_DEFAULT_REGION": "us-east-1"}
    settings |= {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_EC2_METADATA_DISABLED": "true"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield store
        store.fails = None
    store.server.shutdown()
    store.server.server_close()
