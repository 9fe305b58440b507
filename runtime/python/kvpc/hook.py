"""`with press(model):` for Hugging Face models. The files that know transformers are this one,
layers.py, generate.py and refusals.py; what a press is given is in prompt.py.

Written for 4.56, 5.2 and 5.23; what differs between them is marked where it is handled.

Two hooks on the decoder (the module with `.layers`), none on its attention modules unless a press
asks for hidden states or unrotated queries. Before a forward pass, the layers of the cache become
ours, those of full attention `KVLayer`s, and a `Step` is added to the keyword arguments, which every
model passes on to its attention function unchanged. That function, ours for the duration of a
forward, calls the stock one; where this forward ends the prompt, it then calls the press with the
queries, keys and values in its hands, and the layer is sealed: a compressed prefix and a dense tail
from then on.

Positions and masks stay the model's: a sealed layer reports its logical length, and to the mask
code only its tail. The prefix needs no mask, for padding went with the compression and everything
kept lies in the past.
"""

import inspect
import operator
import sys
import threading
import weakref
from contextlib import ContextDecorator, contextmanager

import torch
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from . import library, probe
from .attend import attend
from .errors import ArgumentError, HookError
from .generate import Generate, refuse_from_above
from .layers import CROP_REMOVES, KVLayer, Link, beside, lock, reading
from .prompt import Inputs, Rows, heard
from .refusals import (
    check_model,
    check_press,
    check_wishes,
    not_again,
    not_nested,
    other_model,
    plain_cache,
    plain_mask,
    whole_cache,
)

__all__ = ["CROP_REMOVES", "UNTIL_FINISH", "HookError", "KVLayer", "attach"]

UNTIL_FINISH = float("inf")

# Attention implementations that we call in turn; ours are named by them.
BASES, OURS = {"sdpa", "eager"}, "kvpc_"

# Where a module keeps its hooks, and what it says of them.
REGISTERED = {
    "_forward_pre_hooks": ("_forward_pre_hooks_with_kwargs",),
    "_forward_hooks": ("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
}

# What a Hook finds of its model.
FOUND = "model", "parts", "sliding", "windows", "order", "configs", "names", "inputs"

_hooks = (
    weakref.WeakKeyDictionary()
)  # decoder -> Hook, while a press is attached or a compressed cache lives
_switched = {}  # id of a config -> the forwards under way with it: (Hook.key, thread)


class Step:  # Dynamo cannot build a SimpleNamespace
    """One forward pass; travels to the attention function as a keyword argument. rows: set if it
    ends the prompt."""

    def __init__(self, hook, cache, link, press, rows):
        self.hook, self.cache, self.link, self.press, self.rows = hook, cache, link, press, rows
        self.embeddings = self.hidden = self.state = self.thread = None
        self.depth = 0  # how many forwards of this thread it lies within
        self.undo = []  # (layer, its attributes) of a cache that may not fit
        self.seen = set()  # layers whose queries were captured
        self.past = cache.get_seq_length()


def _register(base, base_mask):
    def attention(module, query, key, value, attention_mask, *args, kvpc=None, **kwargs):
        layer = kvpc and kvpc.cache.layers[module.layer_idx]
        if isinstance(layer, KVLayer) and layer.prefix is not None:
            if kvpc.rows is not None:
                raise kvpc.hook.twice(module)
            return attend(query, layer.prefix, key, value, attention_mask, kwargs["scaling"]), None
        eager = base == "eager" and sys.modules[type(module).__module__].eager_attention_forward
        stock = eager or ALL_ATTENTION_FUNCTIONS[base]
        out = stock(module, query, key, value, attention_mask, *args, **kwargs)
        if isinstance(layer, KVLayer) and kvpc.press is not None:
            if module.layer_idx in kvpc.seen:
                raise kvpc.hook.twice(module)
            kvpc.seen.add(module.layer_idx)
            kvpc.hook.inputs.capture(kvpc, module, layer, query)
        return out

    def mask(**kwargs):  # only a sealed full layer has an offset; sliding ones carry local_size
        sealed = kwargs.get("local_size") is None and kwargs["kv_offset"] > 0
        return (sdpa_mask if sealed else base_mask)(**kwargs)

    AttentionInterface.register(OURS + base, attention)
    AttentionMaskInterface.register(OURS + base, mask)


_register("sdpa", sdpa_mask)
_register("eager", eager_mask)
AttentionInterface.register(probe.NAME, probe.attention)


def _base(config):
    """The attention implementation that a config has without us."""
    return str(config._attn_implementation).removeprefix(OURS)


class Hook:
    """The pair of hooks on one decoder, shared by all presses and compressed caches of the
    model."""

    left = False  # in a copy of the model, which took the hooks along: there they do nothing

    def __init__(self, model):
        self.model = type(model).__name__
        decoder, self.above = model, []  # what calls the decoder
        while not isinstance(getattr(decoder, "layers", None), torch.nn.ModuleList):
            self.above.append(decoder)
            decoder = getattr(decoder, "language_model", None) or getattr(decoder, "model", None)
            if decoder is None:
                raise HookError(
                    f"cannot attach to {self.model}: it has no decoder layers", "hook-model"
                )
        self.decoder, self.press = weakref.ref(decoder), None
        self.session = None  # an object of its own for every `with` that has a press
        self.partial = False  # the press is attached to a part of a model, without generate()
        self.prompt_tokens = None
        self.generating = {}  # thread -> Chunks of its generate(), or None
        self.entered, self.refs, self.key = False, 0, str(id(self))
        self.handles, self.stashing = [], []
        # thread -> the Links of its forwards, weakly; more than one where the model is called from
        # within its own forward
        self.under_way = {}
        # weakly: a cache that lives must not keep the model
        self.parts = [
            weakref.ref(m)
            for m in decoder.modules()
            if hasattr(m, "layer_idx") and hasattr(m, "scaling")
        ]
        # transformers' own opinion on every layer
        opinion = DynamicCache(config=decoder.config)
        self.sliding = opinion.is_sliding
        self.windows = [getattr(layer, "sliding_window", None) for layer in opinion.layers]
        # presses count the layers that they compress, so that budgets over layers add up
        full = [i for i, slides in enumerate(self.sliding) if not slides]
        self.order = {layer: number for number, layer in enumerate(full)}
        self.configs = list({id(m.config): m.config for m in [decoder, *self.attention]}.values())
        self.names = list(inspect.signature(decoder.forward).parameters)
        self.inputs = Inputs(self.model, self.decoder, self.parts, self.order, self.configs)
        check_model(model, self, {_base(c) for c in self.configs}, BASES)
        del self.above

    @staticmethod
    def of(model):
        """The hook a model has already, or a new one; refuses models that cannot be hooked."""
        new = Hook(model)
        if (hook := _hooks.get(new.decoder())) is None:
            return new
        hook.recover()
        if not hook.entered and not hook.under_way:  # the model may have changed since
            for name in FOUND:
                setattr(hook, name, getattr(new, name))
        return hook

    @property
    def attention(self):
        return [m for part in self.parts if (m := part()) is not None]

    def retain(self, n):
        with lock:
            decoder, self.refs = self.decoder(), self.refs + n
            if decoder is not None and _hooks.get(decoder) is not self and self.refs > 0:
                _hooks[decoder] = self
                self.handles = [
                    decoder.register_forward_pre_hook(self.before, with_kwargs=True),
                    decoder.register_forward_hook(self.after, with_kwargs=True, always_call=True),
                ]

    def release(self):
        """What is left to do for a cache that is no more, wherever its end came."""
        self.retain(-1)
        if self.refs == 0 and not _calling():
            self.tidy()

    def tidy(self):
        with lock:
            decoder = self.decoder()
            if decoder is not None and self.refs == 0 and _hooks.pop(decoder, None):
                for handle in self.handles:
                    handle.remove()

    def __reduce__(self):
        return _left, ()

    def shed(self, module):
        # by what they are: another process counts the ids of hooks anew
        for part in module.modules():
            for name, notes in REGISTERED.items():
                hooks = getattr(part, name)
                for key in [k for k, f in hooks.items() if getattr(f, "__self__", None) is self]:
                    for one in (name, *notes):
                        getattr(part, one).pop(key, None)

    def stash(self, module, args, kwargs):
        """On attention modules, if the press asks for what their attention function does not see."""
        if (step := kwargs.get("kvpc")) and not self.left:
            step.embeddings, step.hidden = kwargs["position_embeddings"], kwargs["hidden_states"]

    def switch(self, thread, on):
        """Our attention functions in or out; told by forward and config object, for models and
        threads may share one. To take out what is not in does nothing."""
        if torch.compiler.is_compiling():
            self.switch_alone(thread, on)
        else:
            with lock:
                self.switch_alone(thread, on)

    def switch_alone(self, thread, on):
        me = (self.key, thread)
        for config in self.configs:
            before = _switched.get(id(config), ())
            users = tuple(user for user in before if user != me) + ((me,) if on else ())
            if users:
                _switched[id(config)] = users
                config._attn_implementation = OURS + _base(config)
            elif before:
                config._attn_implementation = _base(config)
                del _switched[id(config)]

    def recover(self, within=0):
        """Ends forwards that never came to `after`: torch calls it for every Exception, but not for
        KeyboardInterrupt and SystemExit. within: how many calls of the decoder the caller is in."""
        alive = sys._current_frames()
        for thread in list(self.under_way):
            if thread == threading.get_ident():
                if _calls(self.decoder()) > within:
                    continue
            elif thread in alive:
                continue
            self.end(thread, 0)

    def end(self, thread, depth):
        """Forwards of a thread from this one on."""
        links = self.under_way.get(thread, [])
        for link in links[depth:]:
            if link := link():
                link.reading = False
                link.let_go()
        del links[depth:]
        if not links:
            self.switch(thread, False)
            self.under_way.pop(thread, None)

    def layers(self, cache):
        """Those of a cache that are ours."""
        return [layer for layer in getattr(cache, "layers", ()) if isinstance(layer, KVLayer)]

    def adopt(self, cache):
        """Make a cache ours: its full-attention layers, with what they hold."""
        sealed = [getattr(layer, "prefix", None) is not None for layer in cache.layers]
        if cache.get_seq_length() and (ours := self.layers(cache)):
            whole_cache(ours[0].link)
        if any(sealed):
            if len(sealed) != len(self.sliding):
                raise other_model(
                    f"it has {len(sealed)} layers; {self.model} has {len(self.sliding)}"
                )
            for i, slides in enumerate(self.sliding):
                # one that slides may be whole, where the mask alone does the sliding
                if sealed[i] if slides else not isinstance(cache.layers[i], KVLayer):
                    has, needs = ("full", "sliding") if slides else ("sliding", "full")
                    raise other_model(
                        f"its layer {i} is of {has} attention; that of {self.model} of {needs}"
                    )
                have = getattr(cache.layers[i], "sliding_window", None)
                if slides and have not in (None, self.windows[i]):
                    raise other_model(
                        f"its layer {i} slides over {have} tokens; that of {self.model} over "
                        f"{self.windows[i]}"
                    )
        link = Link(self, None if cache.get_seq_length() else self.session)
        link.sealed = max((getattr(layer, "sealed", 0) for layer in cache.layers), default=0)
        # of sliding layers from 5.23 on; those of full attention have no such flag before
        records = [layer.record_past for layer in cache.layers if hasattr(layer, "record_past")]
        for i, slides in enumerate(self.sliding):
            if i == len(cache.layers):
                # a lazy DynamicCache(): there the mask alone does the sliding
                cache.layers.append(DynamicLayer())
            layer = cache.layers[i]
            if slides:
                layer = cache.layers[i] = beside(layer)
                if window := getattr(layer, "sliding_window", None):
                    link.window = min(link.window or window, window)
            elif isinstance(layer, KVLayer):
                layer.forget()
            else:
                old, layer = layer, KVLayer(link)
                layer.record_past = len(records) > 0 and all(records)
                if old.get_seq_length():
                    layer.update(old.keys, old.values)
                cache.layers[i] = layer
            layer.link, layer.foreign = link, link.sealed > 0
        if link.sealed:
            link.hold()
        return link

    def before(self, module, args, kwargs):
        if self.left:
            return None if torch.compiler.is_compiling() else self.shed(module)
        if not torch.compiler.is_compiling() and self.under_way:
            self.recover(1)
        kwargs = {**dict(zip(self.names, args)), **kwargs}
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        wanted = kwargs.get("use_cache")
        if wanted is None:
            wanted = getattr(module.config, "use_cache", None)
        if cache is None and self.press and wanted:
            cache = kwargs["past_key_values"] = DynamicCache(config=module.config)
        ours = self.layers(cache)
        if cache is None or (self.press is None and not any(layer.prefix for layer in ours)):
            return None if torch.compiler.is_compiling() else self.tidy()
        ids = kwargs.get("input_ids")
        ids = kwargs.get("inputs_embeds") if ids is None else ids
        if ids is None or ids.dim() < 2:
            return None  # the model refuses it
        plain_cache(cache)
        plain_mask(mask)
        past = cache.get_seq_length()
        end = past + ids.shape[1]
        if (position := kwargs.get("cache_position")) is not None:
            not_again(position, past)
            # 5.2 is one ahead of it after a prefill in chunks
            kwargs["cache_position"] = torch.arange(past, end, device=ids.device)
        check_wishes(self.model, module, ours, kwargs)
        if self.partial and past == 0 and not torch.compiler.is_compiling():
            refuse_from_above(self.model, module)
        for config in self.configs:
            if _base(config) not in BASES:  # set since the hook was attached
                raise HookError(
                    f"attention implementation: have {_base(config)}, need sdpa or eager; remedy: "
                    f"set the one that {self.model} had when the press was attached",
                    "hook-model",
                )
        link = ours[0].link if ours else None
        if getattr(link, "hook", None) is not self:  # new, loaded, or another instance's
            link = self.adopt(cache)
        ours = self.layers(cache)
        if past == 0:
            link.pending, link.broken = self.session, False
            for layer in ours:  # cropped to nothing: another prompt
                layer.forget()
        elif link.pending is not None and link.pending is not self.session:
            link.pending = None  # its `with` ended before the prompt did: it stays whole
            for layer in ours:
                layer.forget()
        whole_cache(link)
        held = ours[0].keys
        if held is not None and held.shape[0] != ids.shape[0]:
            raise HookError(
                f"the cache has {held.shape[0]} rows, the input {ids.shape[0]}; need as many; "
                "remedy: `batch_select_indices` or `batch_repeat_interleave` of the cache",
                "hook-rows",
            )
        press = self.press if link.pending is not None else None
        last, rows = False, None
        if press:
            self.inputs.one_dtype(ids.device.type)
            expected = self.prompt_tokens
            chunks = self.generating and self.generating.get(threading.get_ident())
            if chunks and chunks.are_in(cache):
                expected = chunks.length
                if mask is not None:  # 5.2 and 4.56 get these wrong
                    kwargs["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, past:end]
            last = end >= (expected or 0)
            told = heard(press, ours[0].told, mask, kwargs.get("position_ids"), ids, past)
            if last:
                rows = Rows(told, ids.shape[0], end)
                self.inputs.enough(press, ours, rows, past, ids.shape[1])
            else:
                ours[0].told = told
                if not torch.compiler.is_compiling():
                    with lock:
                        reading.update(ours)
        step = kwargs["kvpc"] = Step(self, cache, link, press, rows)
        if not torch.compiler.is_compiling():
            if any(layer.foreign for layer in ours):
                step.undo = [(layer, dict(vars(layer))) for layer in cache.layers]
            step.thread = threading.get_ident()
            links = self.under_way.setdefault(step.thread, [])
            step.depth = len(links)
            links.append(weakref.ref(link))
        link.pending = None if last else link.pending
        if last:
            link.hold()
        link.reading, link.broken = True, last
        self.switch(step.thread, True)
        return (), kwargs

    def twice(self, module):
        return HookError(
            f"layer {module.layer_idx} of {self.model} calls attention more than once; need a model "
            "whose layers do it once, with the keys and values of the cache",
            "hook-model",
        )

    def heard_all(self, step):
        """Every layer has called our attention function, or this is no model for a press."""
        if missed := [i for i in self.order if i not in step.seen]:
            step.link.broken = len(missed) < len(self.order)
            raise HookError(
                f"the press was not called: {self.model} did not pass what the hook gave it on to "
                f"the attention of layer {missed[0]}; need a model that passes keyword arguments on",
                "hook-model",
            )

    def after(self, module, args, kwargs, output):
        if (step := kwargs.get("kvpc")) and not self.left:
            step.link.reading = step.link.broken = False
            for layer, held in step.undo if output is None else ():
                vars(layer).update(held)
            if output is None and step.rows is not None:
                held = {layer.get_seq_length() for layer in step.cache.layers}
                step.link.broken = held != {step.past}
                if not step.link.broken:  # no layer was called: the prompt may still end
                    step.link.pending = self.session
            try:
                if output is not None and step.press is not None:
                    self.heard_all(step)
            finally:
                if step.thread is None:
                    self.switch(None, False)
                else:
                    self.end(step.thread, step.depth)

    def finish(self, cache, attention_mask=None):
        """Compress a prompt that came in chunks and whose length was not told
        (prompt_tokens=UNTIL_FINISH)."""
        if self.press is None:
            raise HookError(
                "no press is attached: the `with` has ended, or had none; remedy: call `finish` "
                "inside `with kvpc.hook.attach(model, press, ...)`",
                "hook-finish",
            )
        plain_cache(cache)
        plain_mask(attention_mask)
        layers = self.layers(cache)
        link = layers[0].link if layers else None
        if getattr(link, "hook", None) is self:
            whole_cache(link)
        whole = [layer for layer in layers if layer.prefix is None]
        if (
            getattr(link, "hook", None) is not self
            or layers[0].keys is None
            or (whole and link.pending is not self.session)
        ):
            raise HookError(
                f"the cache holds nothing that {self.model} read inside this `with`; remedy: give "
                "the cache that the model was called with",
                "hook-finish",
            )
        shape = layers[0].keys.shape[0], cache.get_seq_length()
        if attention_mask is not None and attention_mask.shape != shape:
            raise HookError(
                f"the attention mask has shape {list(attention_mask.shape)}; need {list(shape)}, "
                "rows and tokens of the cache",
                "hook-mask",
            )
        # less what a call said that failed before the first layer
        told = {name: x[:, : shape[1]] for name, x in layers[0].told.items()}
        if attention_mask is not None:
            told = told | {"real": attention_mask.bool()[..., None]}
        rows = Rows(told, *shape)
        if whole:
            self.inputs.enough(self.press, layers, rows, shape[1], 0)
        step = Step(self, cache, link, self.press, rows)
        link.hold()
        try:
            for module in self.attention:
                layer = cache.layers[module.layer_idx]
                if isinstance(layer, KVLayer) and layer.prefix is None:
                    self.inputs.compress(step, module, layer, layer.window)
                    link.pending = None
        finally:
            link.let_go()
            link.broken = len({layer.prefix is None for layer in layers}) > 1


def _left():
    """The Hook of hooks that came along with a copy of a model: they go at its first call."""
    hook = object.__new__(Hook)
    hook.left = True
    return hook


def _calling():
    """Whether any thread calls a module, or Dynamo reads one: its hooks must stay meanwhile, until
    its next call."""
    for frame in sys._current_frames().values():
        while frame is not None:
            code, frame = frame.f_code, frame.f_back
            if code is torch.nn.Module._call_impl.__code__ or "_dynamo" in code.co_filename:
                return True
    return False


def _calls(module):
    """How many calls of it this thread is in."""
    count, frame = 0, sys._getframe()
    while frame is not None:
        if frame.f_code is torch.nn.Module._call_impl.__code__:
            count += frame.f_locals.get("self") is module
        frame = frame.f_back
    return count


def _prompt_tokens(value):
    """What `attach` is told of the prompt's length, checked."""
    if value is None or (isinstance(value, float) and value == UNTIL_FINISH):
        return value
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        number = 0
    if number < 1:
        raise ArgumentError(
            f"`prompt_tokens` is {value!r}; need a positive whole number, or "
            "kvpc.hook.UNTIL_FINISH, or None where a prompt comes in one call",
            "hook-prompt-tokens",
        )
    return number


class _Attached(ContextDecorator):
    """May be entered again, once it was left."""

    def __init__(self, *options):
        self.options, self.entered = options, []

    def __enter__(self):
        entered = _attached(*self.options)
        hook = entered.__enter__()
        self.entered.append(entered)
        return hook

    def __exit__(self, *error):
        return self.entered.pop().__exit__(*error)


def attach(model, press=None, prompt_tokens=None):
    """Compress every prompt that `model` sees with `press`, at its end.

    prompt_tokens: where a prompt ends that comes in several calls of the model, or UNTIL_FINISH:
    then the yielded hook's `finish(cache)` says so. A prompt that never gets as long as it was told
    is not compressed. generate() needs neither. Without a press, only caches that are compressed
    already (loaded ones, or another instance's) can be read. Compressed caches stay readable after
    the `with`.
    """
    return _Attached(model, press, prompt_tokens)


@contextmanager
def _attached(model, press, prompt_tokens):
    prompt_tokens = _prompt_tokens(prompt_tokens)
    check_press(press)
    while (inner := getattr(model, "_orig_mod", None)) is not None:  # torch.compile(model)
        model = inner
    library.ops()  # attention's operator: a tracer cannot load a library
    with lock:
        hook = Hook.of(model)
        if hook.entered:
            raise not_nested(hook.press, press)
        hook.inputs.check(press)
        hook.press, hook.prompt_tokens, hook.entered = press, prompt_tokens, True
        hook.session = None if press is None else object()
        hook.retain(1)
    asks = {"unrotated_queries", "hidden"} & set(getattr(press, "inputs", ()))
    hook.stashing = [
        m.register_forward_pre_hook(hook.stash, with_kwargs=True) for m in hook.attention if asks
    ]
    generate = Generate(model, hook) if hasattr(model, "generate") else None
    hook.partial = generate is None and press is not None
    try:
        yield hook
    finally:
        if generate:
            generate.leave()
        for handle in hook.stashing:
            handle.remove()
        hook.recover()
        with lock:  # prompts that have not ended stay whole: nothing captured is of use
            for layer in list(reading):
                if press is not None and layer.link.pending is hook.session:
                    layer.forget()
                if not layer.window and not layer.told:
                    reading.discard(layer)
        hook.press, hook.session, hook.prompt_tokens, hook.entered = None, None, None, False
        hook.partial = False
        hook.retain(-1)
        hook.tidy()
