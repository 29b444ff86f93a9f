"""Rewards for Cohort in Python. One file, no dependencies, Python 3.8 or newer.

    from cohort_reward import reward, run

    @reward
    def my_reward(turns, item, context):
        return 1.0 if item["answer"] in turns[-1]["content"] else 0.0

    if __name__ == "__main__":
        run()

`turns` is the dialogue: dicts with "role" (system, user, assistant, tool) and "content". `item` is the row of the data
set, `context` what the environment says about the episode. The result is a number, or a dict with "score" and
optionally "breakdown" (named numbers) and "metadata". The function may be async. With `@reward(group=True)` it gets the
whole group at once, lists of turns and of contexts, and returns a list of results. A function that has parameters
named options, seed, group, sample or purpose gets these too.

Prints go to the log of the worker. A result that is not finite, or an exception, fails the sample with its traceback;
it never counts as a score of 0.
"""
import asyncio
import atexit
import ctypes
import inspect
import json
import math
import os
import queue
import signal
import struct
import sys
import threading
import traceback

__version__ = "0.1.0"
__all__ = ["reward", "run"]

PROTOCOL = 1
MAX_FRAME = 64 << 20  # bytes of one frame's JSON, both ways
_EXTRA = ("options", "seed", "group", "sample", "purpose")


def reward(function=None, *, group=False, options=None):
    """Makes a function the reward of this plug-in.

    group: the function gets the whole group at once. options: JSON Schema of the `options` table in the config.
    """

    def register(target):
        if _plugin.function is not None:
            raise RuntimeError(
                "two functions are marked @reward: %s and %s. A plug-in has one; make a file for each"
                % (_plugin.function.__name__, target.__name__)
            )
        _plugin.function, _plugin.group, _plugin.schema = target, group, options
        return target

    return register if function is None else register(function)


def run():
    """Serves the host until it closes standard input. Started by hand, it says how to use the file."""
    _plugin.served = True
    if _plugin.host is None:
        sys.stderr.write(
            "This is a reward plug-in of Cohort. Name it in a config:\n\n[[rewards.parts]]\ntype = \"process\"\n"
            'command = ["python3", "%s"]\n' % os.path.basename(sys.argv[0] or "my_reward.py")
        )
        return
    if _plugin.function is None:
        raise SystemExit("no function is marked @reward: put @reward above the function that grades")
    _plugin.serve()


class _Host:
    """The frames' own pipe. Standard output now is standard error, so that no print can corrupt a frame."""

    def __init__(self):
        _die_with_parent()
        self.reader = os.fdopen(os.dup(0), "rb")
        self.writer = os.fdopen(os.dup(1), "wb")
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        os.dup2(2, 1)
        sys.stdout.reconfigure(line_buffering=True)
        self.inbox = queue.Queue(maxsize=4)
        threading.Thread(target=self._read, name="cohort-reader", daemon=True).start()

    def _read(self):
        try:
            while True:
                head = self.reader.read(4)
                if len(head) < 4:
                    break
                (length,) = struct.unpack("<I", head)
                if length > MAX_FRAME:
                    raise ValueError("a frame of %d bytes is over the limit of %d" % (length, MAX_FRAME))
                body = self.reader.read(length)
                if len(body) < length:
                    break
                self.inbox.put(json.loads(body.decode("utf-8")))
            error = None
        except Exception as caught:  # handed to the main thread, which ends the process
            error = caught
        try:
            self.inbox.put(error, timeout=2)
        except queue.Full:
            pass
        # The host is gone or broken: leave even where the user's function does not return.
        threading.Event().wait(2)
        os._exit(1)

    def receive(self):
        """The next message, or None at the end of standard input."""
        message = self.inbox.get()
        if isinstance(message, Exception):
            raise message
        return message

    def send(self, message):
        body = json.dumps(message, allow_nan=False).encode("utf-8")
        if len(body) > MAX_FRAME:
            raise ValueError("an answer of %d bytes is over the limit of %d" % (len(body), MAX_FRAME))
        self.writer.write(struct.pack("<I", len(body)) + body)
        self.writer.flush()


class _Plugin:
    def __init__(self):
        self.function, self.group, self.schema = None, False, None
        self.options, self.served, self.failed = {}, False, False
        self.host = _Host() if os.environ.get("COHORT_PLUGIN") else None
        self.loop = None

    def serve(self):
        self.host.send(
            {
                "type": "hello",
                "role": "reward",
                "protocol_min": PROTOCOL,
                "protocol_max": PROTOCOL,
                "name": self.function.__name__,
                "sdk": "cohort_reward.py %s, Python %s" % (__version__, sys.version.split()[0]),
                "capabilities": ["group" if self.group else "sample"],
                "schema": self.schema,
            }
        )
        while True:
            message = self.host.receive()
            if message is None:
                break
            kind = message.get("type")
            if kind == "welcome":
                self.options = message.get("options") or {}
            elif kind == "score":
                answer = self._answer(message)
                try:
                    self.host.send(answer)
                except (TypeError, ValueError) as error:  # metadata that is no JSON, or too much of it
                    self.host.send({"type": "error", "id": message["id"], "message": _explain(error)})
            elif kind == "refused":
                raise SystemExit("the host refused this plug-in: %s" % message.get("reason"))
            else:
                raise SystemExit("the host sent a message of unknown type %r: use the SDK of its version" % (kind,))
        sys.stdout.flush()

    def _answer(self, message):
        try:
            if inspect.iscoroutinefunction(self.function):
                if self.loop is None:
                    self.loop = asyncio.new_event_loop()
                    asyncio.set_event_loop(self.loop)
                scores = self.loop.run_until_complete(self._grade_async(message))
            else:
                scores = self._grade(message)
            return {"type": "scores", "id": message["id"], "scores": scores}
        except (Exception, SystemExit) as error:
            return {"type": "error", "id": message["id"], "message": _explain(error)}

    def _grade(self, message):
        if self.group:
            return self._entries(self._call_group(message), len(message["samples"]))
        scores = []
        for sample in message["samples"]:
            try:
                scores.append(_entry(self._call(message, sample)))
            except (Exception, SystemExit) as error:
                scores.append({"error": _explain(error)})
        return scores

    async def _grade_async(self, message):
        if self.group:
            return self._entries(await self._call_group(message), len(message["samples"]))

        async def one(sample):
            try:
                return _entry(await self._call(message, sample))
            except (Exception, SystemExit) as error:
                return {"error": _explain(error)}

        return list(await asyncio.gather(*[one(sample) for sample in message["samples"]]))

    def _call(self, message, sample):
        return self.function(sample["turns"], message["item"], sample["context"], **self._extra(message, sample))

    def _call_group(self, message):
        samples = message["samples"]
        turns, contexts = [s["turns"] for s in samples], [s["context"] for s in samples]
        return self.function(turns, message["item"], contexts, **self._extra(message, None))

    def _extra(self, message, sample):
        known = dict(message, options=self.options)
        known["sample"] = None if sample is None else sample["sample"]
        names = list(inspect.signature(self.function).parameters)[3:]
        return {name: known[name] for name in names if name in _EXTRA}

    @staticmethod
    def _entries(results, count):
        results = list(results)
        if len(results) != count:
            raise ValueError("the function returned %d results for a group of %d samples" % (len(results), count))
        return [_entry(result) for result in results]


def _entry(result):
    """A result as an entry of the answer; ValueError where it is no finite score."""
    if isinstance(result, dict):
        unknown = set(result) - {"score", "breakdown", "metadata"}
        if unknown:
            raise ValueError("unknown key %r in the result: it may have score, breakdown, metadata" % sorted(unknown)[0])
        entry = {"score": _finite("score", result.get("score"))}
        if result.get("breakdown"):
            entry["breakdown"] = {str(k): _finite("breakdown[%r]" % k, v) for k, v in result["breakdown"].items()}
        if result.get("metadata"):
            entry["metadata"] = result["metadata"]
        return entry
    return _finite("the result", result)


def _finite(what, value):
    if value is None or isinstance(value, (str, bytes)):
        raise ValueError("%s is %r: return a number, or a dict with \"score\"" % (what, value))
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("%s is %r: a score must be a finite number" % (what, number))
    return number


def _explain(error):
    """The last line first, then where it happened in the user's file."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if os.path.abspath(f.filename) != _HERE]
    head = "".join(traceback.format_exception_only(type(error), error)).strip()
    if not frames:
        return head
    return head + "\n" + "".join(traceback.format_list(frames[-8:])).rstrip()


def _die_with_parent():
    """On Linux the kernel kills this process when the worker dies; elsewhere the end of standard input does."""
    parent = os.getppid()
    try:
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG
    except (AttributeError, OSError):
        return
    if os.getppid() != parent:
        os._exit(1)  # it died before the call above


def _note_failure(kind, value, trace):
    _plugin.failed = True
    sys.__excepthook__(kind, value, trace)


def _serve_at_exit():
    """A file that ends without `run()` is served all the same."""
    if _plugin.function is not None and not _plugin.served and not _plugin.failed:
        run()


_HERE = os.path.abspath(__file__)
_plugin = _Plugin()
if _plugin.host is not None:
    sys.excepthook = _note_failure
    atexit.register(_serve_at_exit)
