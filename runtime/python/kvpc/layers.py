"""The layers of a cache that a hooked model reads, as transformers wants them: those of full
attention, which are compressed, and sliding ones beside them.

A cache is called layer by layer. What one layer would refuse, the first refuses already, by what
their Link says of all: a call that is refused changes nothing.
"""

import inspect
import threading
import weakref

import torch
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from .cache import Layer, Prefix
from .errors import HookError
from .refusals import other_model, shape_of

# DynamicLayer.crop takes a new length until 5.22, a count to remove (negative) from 5.23 on.
CROP_REMOVES = "tokens_to_remove" in inspect.signature(DynamicLayer.crop).parameters

reading = weakref.WeakSet()  # layers that may hold what was captured of a prompt in pieces
lock = threading.RLock()


class Link:
    """One per cache, shared by its layers. From where its cache is compressed (`hold`), the model
    keeps its (idle) pair of hooks while it lives. Of a cache that no hook has read yet (a loaded
    one), `hook` is None.

    pending: the `Hook.session` whose press waits for the end of the prompt; reading: the hook is in
    charge of the forward under way; broken: a forward failed amid the compression, or is amid it;
    sealed: how many tokens are compressed; window: the least of layers that forget what has left it.
    """

    def __init__(self, hook=None, pending=None):
        self.hook, self.pending, self.reading, self.broken = hook, pending, False, False
        self.sealed, self.window, self.released = 0, None, None

    def hold(self):
        if self.released is None:
            self.hook.retain(1)
            self.released = weakref.finalize(self, self.hook.release)
            self.released.atexit = False

    def let_go(self):
        """Unless there is something compressed."""
        if self.released is not None and not self.sealed:
            released, self.released = self.released, None
            released()

    def __deepcopy__(self, memo):  # prefix caching copies caches: share the model, own the flags
        if id(self) not in memo:
            memo[id(self)] = link = Link(self.hook, self.pending)
            link.broken, link.sealed, link.window = self.broken, self.sealed, self.window
            if self.released is not None:
                link.hold()
        return memo[id(self)]

    def __reduce__(self):  # a saved cache must not carry the model
        return Link, (), {name: getattr(self, name) for name in ("broken", "sealed", "window")}


class Linked:
    """Any layer of such a cache."""

    foreign = False  # from a file or another instance: may not fit

    def expect(self, keys, values):
        """Before they are added."""
        if self.link.sealed and not self.link.reading:
            raise HookError(
                "this cache is compressed; have: a model without the hook; need: the model that "
                "filled it; remedy: use that model, or call this one within "
                "`with kvpc.hook.attach(model):`",
                "hook-cache-compressed",
            )
        if self.foreign:
            if self.keys is not None and self.keys.dim() == 4:
                have, need = shape_of(self.keys, self.values), shape_of(keys, values)
                if have != need:
                    raise other_model(f"it has {have}; this model has {need}")
            self.foreign = False

    def left(self, n):
        """How many tokens `crop(n)` leaves."""
        if CROP_REMOVES and n > 0:
            raise ValueError("crop takes the number of tokens to remove, as a negative number")
        length = n if n > 0 or (n == 0 and not CROP_REMOVES) else self.get_seq_length() + n
        if length < self.link.sealed > 0:
            raise HookError(
                f"cannot crop to {length} tokens: the first {self.link.sealed} are compressed; "
                "remedy: keep a copy.deepcopy of the cache from before the compression",
                "hook-crop",
            )
        return length


class KVLayer(Linked, Layer, CacheLayerMixin):
    """Of full attention.

    Of a prompt that comes in chunks, [row, ..., token, channel], all of them following the rows and
    tokens of the cache:
    window       what the press will want of it, as many of the last tokens as it wants
    told         what calls said of all tokens, see `prompt.heard`; in the first layer alone
    frequencies  the rotary embedding's, with which it was read
    """

    is_sliding, is_compileable, is_croppable = False, False, True

    def __init__(self, link):
        Layer.__init__(self)
        self.link, self.is_initialized = link, False
        self.foreign = self.record_past = False
        self.forget()

    def forget(self):
        self.window, self.told, self.frequencies = {}, {}, None

    def lazy_initialization(self, keys, values=None):  # 4.56 passes keys alone
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(self, keys, values, *args, **kwargs):  # cache_kwargs until 5.2, nothing in 5.23
        self.expect(keys, values)
        if not self.is_initialized:
            self.lazy_initialization(keys)
        self.append(keys, values)
        return self.keys, self.values

    def seal(self, prefix, length):
        super().seal(prefix, length)
        self.link.sealed = length
        self.forget()

    def get_seq_length(
        self, *args
    ):  # logical: generate() slices inputs and masks and counts positions by it
        return self.length()

    def get_mask_sizes(self, query):  # the tail's; positions in 4.56 and 5.2, a length in 5.23
        return self.tail() + (query if isinstance(query, int) else query.shape[0]), self.sealed

    def get_max_cache_shape(self):
        return -1

    get_max_length = get_max_cache_shape  # its name in 5.23

    def activate_past_recording(self):  # from 5.23 on: of sliding layers, which can be cropped then
        self.record_past = True

    def crop(self, n):
        length, window = self.left(n), self.link.window
        if window is not None and self.length() >= window and not self.record_past:
            raise HookError(
                f"cannot crop: this cache has sliding layers, which hold the last {window - 1} tokens "
                f"of {self.length()} alone; remedy: keep a copy.deepcopy of the cache",
                "hook-crop",
            )
        gone = self.length() - length
        self.cut(length if length >= 0 or not CROP_REMOVES else 0)
        for held in (self.window, self.told):
            for name, x in held.items() if gone > 0 else ():
                held[name] = x[..., : max(0, x.shape[-2] - gone), :]

    def batch_select_indices(self, indices):
        if self.keys is None:
            return
        rows = torch.arange(self.keys.shape[0], device="cpu")[torch.as_tensor(indices).cpu()]
        self.select(rows)
        for held in (self.window, self.told):
            for name, x in held.items():
                held[name] = x[rows.to(x.device)]

    reorder_cache = batch_select_indices

    def batch_repeat_interleave(self, repeats):
        if self.keys is not None:
            rows = torch.arange(self.keys.shape[0], device="cpu").repeat_interleave(repeats)
            self.batch_select_indices(rows)

    def reset(self):
        recorded = self.record_past
        self.__init__(self.link)
        self.record_past = recorded
        self.link.sealed = 0
        self.link.let_go()

    def __setstate__(self, state):  # of copies
        self.__dict__.update(state)
        with lock:
            reading.add(self)


class Beside(Linked):
    """Of sliding attention: left as it is."""

    is_sliding = True  # or the mask of full layers takes its sizes from this layer

    def update(self, keys, values, *args, **kwargs):
        self.expect(keys, values)
        return super().update(keys, values, *args, **kwargs)

    def crop(self, n):
        self.left(n)
        if self.keys is not None:
            super().crop(n)

    def reset(self):
        super().reset()
        self.keys, self.values, self.is_initialized = None, None, False  # until 5.22: zeros


class SlidingLayer(Beside, DynamicSlidingWindowLayer):
    pass


class MaskedLayer(Beside, DynamicLayer):
    """Of a lazy DynamicCache(): there the mask alone does the sliding."""


SLIDING = {DynamicLayer: MaskedLayer, DynamicSlidingWindowLayer: SlidingLayer}


def beside(layer):
    """A sliding layer as one of ours."""
    if isinstance(layer, KVLayer):  # of a saved cache, which does not know what slides
        new = MaskedLayer()
        if layer.keys is not None:
            DynamicLayer.update(new, layer.keys, layer.values)
        return new
    if type(layer) not in SLIDING:
        return layer
    new = object.__new__(SLIDING[type(layer)])
    vars(new).update(vars(layer))
    return new


def unlinked_layer(said, parts, link):
    """A layer of a saved cache (saved.py): `attach` makes it readable."""
    keys, values = parts["tail_keys"], parts["tail_values"]
    if said["kind"] == "sliding":
        layer = SlidingLayer(said["window"])
        layer.link = link
        DynamicLayer.update(layer, keys, values)
        layer.keys, layer.values, layer.cumulative_length = keys, values, said["seen"]
        link.window = min(link.window or said["window"], said["window"])
        return layer
    layer = KVLayer(link)
    layer.lazy_initialization(keys)
    layer.keys, layer.values = keys, values
    if said["kind"] == "compressed":
        tokens = parts["tokens"]
        if tokens.dim() == 3:
            tokens = tokens.expand(-1, said["heads"], -1)
        layer.prefix = Prefix.of_parts(
            parts["keys"],
            parts["values"],
            tokens,
            parts.get("offsets"),
            parts.get("channels"),
            said["heads"],
            said["rows"],
        )
        layer.sealed = link.sealed = said["sealed"]
    return layer
