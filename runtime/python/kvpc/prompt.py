"""What a press is given of a prompt, layer by layer: keys and values, and beside them what it asks for."""

import copy
import weakref

import torch

from . import probe
from .attend import rotate, unrotate
from .cache import Prefix
from .errors import Error, HookError

# What a press may ask for beside keys and values.
SUPPLIED = {"queries", "unrotated_queries", "hidden", "output_weight", "rope"}

# Of these, what is captured as the prompt is read, and what presses turn queries or keys back by.
CAPTURED = {"queries", "unrotated_queries", "hidden"}
TURNING = {"unrotated_queries", "rope"}

# Why a press refuses any call of a model: it was made for another.
UNFIT = {"kvm-shape", "kvm-channels", "kvm-parameter"}

# Of models that compute in the dtype of their weights.
DTYPES = torch.float32, torch.bfloat16, torch.float16, torch.float64

# Why a press that turns queries or keys back is refused, by what probe.py found of a layer.
LAYOUTS = {
    "none": "layer {} has no rotary embedding",
    "other": "the rotary embedding of layer {} pairs other channels than those of two halves",
    None: "how layer {} rotates cannot be told",
}


def heard(press, told, mask, positions, ids, past):
    """What this call and those before it say of a prompt's tokens, each [row, token, 1]: which are
    `real`, once a mask was given, and their `positions`, if the press turns queries or keys. In
    memory of its own: callers advance their masks and positions in place."""
    batch, new = ids.shape[:2]
    told = {name: x[:, :past] for name, x in told.items()}
    if mask is not None:
        told["real"] = mask[:, : past + new, None].bool().expand(batch, -1, -1)
    elif "real" in told:
        told["real"] = torch.cat([told["real"], told["real"].new_ones(batch, new, 1)], 1)
    if TURNING & set(press.inputs):
        if positions is None:
            positions = torch.arange(past, past + new, device=ids.device)[None]
        if positions.dim() != 2:
            raise _positions(f"have {positions.dim()} axes, need two: row and token")
        positions = positions.expand(batch, new)[..., None]
        if "positions" in told:
            positions = torch.cat([told["positions"], positions], 1)
        told["positions"] = positions
    return {name: x.clone() for name, x in told.items()}


def _positions(why):
    return HookError(
        "the press turns queries or keys back by the `position_ids` of the prompt: " + why,
        "hook-positions",
    )


class Rows:
    """The real tokens of every batch row of a prompt, read once per prompt from what was told.

    begin: the position of each row's first real token, int [row]; None where all are 0.
    """

    def __init__(self, told, batch, length):
        self.padding, self.lengths, self.ends, self.begin = "left", None, None, None
        real, positions = (told[n][..., 0] if n in told else None for n in ("real", "positions"))
        if real is not None and not real.all():
            self._find(real, length)
        if positions is not None:
            real = torch.ones_like(positions, dtype=torch.bool) if real is None else real
            self._count(real, positions.long())

    def _count(self, real, positions):
        first = real.long().argmax(1, keepdim=True)
        begin = positions.gather(1, first)
        late = torch.arange(positions.shape[1], device=positions.device) - first
        if (real & (positions != begin + late)).any():
            raise _positions(
                "those of a row's real tokens must each be one more than that before; remedy: such "
                "`position_ids`, or a press that turns nothing back"
            )
        if begin.any():
            self.begin = begin[:, 0]

    def _find(self, real, length):
        self.lengths = real.sum(1).cpu()
        first = real.long().argmax(1).cpu()
        last = length - real.flip(1).long().argmax(1).cpu()
        first, last = (torch.where(self.lengths > 0, x, length) for x in (first, last))
        if (last - first != self.lengths).any():
            raise HookError(
                "padding must lie on one side of the prompt, have real tokens on both sides of it",
                "hook-padding",
            )
        if (last != length).any():
            first = torch.where(self.lengths > 0, first, 0)
            if (first != 0).any():
                raise HookError(
                    "padding must lie on the same side in every row of a batch, have both sides",
                    "hook-padding",
                )
            self.padding, self.ends = "right", self.lengths


class Inputs:
    """What one model can give. attention: its attention modules, weakly; order: which of them are
    compressed, and how presses count them."""

    def __init__(self, model, decoder, attention, order, configs):
        self.model, self.decoder = model, decoder
        self.attention, self.order, self.configs = attention, order, configs
        # layer -> the projection behind its attention, weakly, if a press asks for it
        self.outputs = {}
        # None: quantized
        weights = [m.weight for a in attention for m in a().modules() if _linear(m)]
        self.dtype = weights[0].dtype if weights and weights[0].dtype in DTYPES else None

    def check(self, press):
        """Refuses presses that ask for what this model has not, or not as presses take it."""
        takes = getattr(press, "dtypes", None)
        if takes and self.dtype is not None and self.dtype not in takes:
            takes = ", ".join(map(dtype_name, takes))
            raise HookError(
                f"cannot attach to {self.model}: it is in {dtype_name(self.dtype)}, and the press has "
                f"code for {takes}; remedy: `model.to` one of these, or, if the press can have it, "
                "compile it for more (`dtypes`)",
                "hook-dtype",
            )
        asked = getattr(press, "inputs", ())
        for name in asked:
            if name not in SUPPLIED:
                raise self.lacks(name)
        given = {"unrotated_queries", "rope", "output_weight"} & set(asked)
        if not given and not hasattr(press, "check"):
            return
        configs = {id(config): copy.deepcopy(config) for config in self.configs}
        for config in configs.values():
            config._attn_implementation = probe.NAME
        for module in (part() for part in self.attention):
            if module.layer_idx not in self.order:
                continue
            wanted, layer = press.inputs_at(self.order[module.layer_idx]), module.layer_idx
            turning = sorted(TURNING & set(wanted), reverse=True)
            try:
                source = copy.deepcopy(self.decoder().rotary_emb).to("cpu", torch.float32)
                tables = probe.tables(source, *self.kind(source, module))
                trial = probe.Trial(module, configs[id(module.config)], tables)
                layout, (output, why) = trial.layout(), trial.output()
                if layout == "half" and not probe.is_half(
                    tables, *self.frequencies(source, module)
                ):
                    layout = "other"
            except Exception:  # whatever a module makes of a call that is not its model's
                trial, layout, output = None, None, None
                why = "what follows the attention of {} cannot be told"
            if turning and layout != "half":
                raise self.lacks(turning[0], LAYOUTS[layout].format(layer))
            self.outputs[layer] = output and weakref.ref(output)
            if "output_weight" in wanted and why:
                raise self.lacks("output_weight", why.format(f"layer {layer}"))
            if trial is not None and hasattr(press, "check"):
                self.fits(press, module, trial)

    def fits(self, press, module, trial):
        """Refuses a press made for other layers, heads or channels: of a tensor or module."""
        number = self.order[module.layer_idx]
        wanted, inputs = press.inputs_at(number), {}
        amounts = [amount for amount in wanted.values() if type(amount) is int]
        dtype = self.dtype if self.dtype in press.dtypes else press.dtypes[0]
        # as many tokens as no press finds too few
        queries, keys, values, hidden = trial.shapes(dtype, max([1 << 16, *amounts]))
        shown = {"queries": queries, "unrotated_queries": queries, "hidden": hidden}
        for name in wanted:
            if name in CAPTURED:
                inputs[name] = shown[name][..., -_amount(wanted[name]) :, :]
        if "output_weight" in wanted:
            width = queries.shape[1] * values.shape[3]
            inputs["output_weight"] = hidden.new_zeros(width).expand(hidden.shape[2], -1)
        if "rope" in wanted:
            inputs["rope"] = self.rope(module, None)
        try:
            press.check(keys, values, **inputs, layer=number, layers=len(self.order))
        except Error as error:
            if error.code not in UNFIT:
                return  # of the call
            why = str(error).removesuffix(f" [{error.code}]")
            raise HookError(
                f"cannot attach to {self.model}: at layer {module.layer_idx}, which the press counts "
                f"as {number} of {len(self.order)}: {why}",
                "hook-fit",
            ) from error

    def lacks(self, name, why=""):
        why = f": {why}; remedy: a press without it" if why else ""
        return HookError(
            f"the press needs `{name}`, which {self.model} does not supply{why}", "hook-input"
        )

    def one_dtype(self, device):
        """Under autocast projections give its dtype, while rotated keys have that of the tables."""
        if self.dtype is None or not torch.is_autocast_enabled(device):
            return
        if (cast := torch.get_autocast_dtype(device)) != self.dtype:
            raise HookError(
                f"torch.autocast to {dtype_name(cast)}, with a model in {dtype_name(self.dtype)}: keys and "
                "values come in two dtypes, a press needs one; remedy: read the prompt without "
                f"autocast, or convert the model (`model.to(torch.{dtype_name(cast)})`)",
                "hook-dtype",
            )

    def enough(self, press, layers, rows, past, new):
        """Refuses to end a prompt of several pieces of which the press cannot be given what it
        wants: each row's last tokens, of which too many may be cropped."""
        if rows.ends is not None and any(layer.window for layer in layers):
            raise HookError(
                "a prompt in chunks must be padded on the left, have padding on the right",
                "hook-padding",
            )
        for number, layer in enumerate(layers if past else ()):
            for name, amount in press.inputs_at(number).items():
                if name not in CAPTURED:
                    continue
                held = layer.window[name].shape[-2] if name in layer.window else 0
                wanted = min(_amount(amount), past + new)
                if held + new < wanted:
                    raise HookError(
                        f"the press wants `{name}` of the prompt's last {wanted} tokens, and has "
                        f"{held + new}, for the cache was cropped; remedy: at least {wanted - held} "
                        "tokens in the last piece, or the prompt once more with a new cache",
                        "hook-crop",
                    )

    def capture(self, step, module, layer, query):
        """Keep what the press wants of a chunk of the prompt; compress at its end."""
        inputs, rows = step.press.inputs_at(self.order[module.layer_idx]), step.rows
        new = {}
        if TURNING & set(inputs):
            self.same_frequencies(module, layer)
        if "queries" in inputs:
            new["queries"] = query
        if "unrotated_queries" in inputs:
            # all of a chunk only where rows end early: their own last ones are picked below
            part = slice(None)
            if rows is None or rows.ends is None:
                part = slice(-_amount(inputs["unrotated_queries"]), None)
            cos, sin = (table[:, part] for table in step.embeddings)
            new["unrotated_queries"] = unrotate(query[:, :, part], cos, sin)
        if "hidden" in inputs:
            new["hidden"] = step.hidden
        for name, old in layer.window.items():
            new[name] = torch.cat([old, new[name]], -2)
        if rows is None:
            for name, value in new.items():
                # own memory: a slice would keep all queries of the chunk alive
                layer.window[name] = value[..., -_amount(inputs[name]) :, :].clone()
        else:
            self.compress(step, module, layer, new)

    def same_frequencies(self, module, layer):
        """They change where a `dynamic` embedding grows with the prompt, for later tokens alone."""
        now = self.frequencies(self.decoder().rotary_emb, module)[0]
        if layer.frequencies is not None and not torch.equal(layer.frequencies, now):
            raise _positions(
                f"{self.model} changed its rotary frequencies between the pieces; remedy: read the "
                "prompt in one call, or take a press that turns nothing back"
            )
        layer.frequencies = now

    def compress(self, step, module, layer, captured):
        press, rows = step.press, step.rows
        number = self.order[module.layer_idx]
        wanted, inputs = press.inputs_at(number), {}
        for name, value in captured.items():
            inputs[name] = _last(value, _amount(wanted[name]), rows.ends).detach()
        if rows.begin is not None and "unrotated_queries" in inputs:
            # The press counts from 0; keys that it turns back stay turned by the row's beginning.
            turned = rotate(inputs["unrotated_queries"], rows.begin, layer.frequencies)
            inputs["unrotated_queries"] = turned
        if "output_weight" in wanted:
            inputs["output_weight"] = self.outputs[module.layer_idx]().weight.detach()
        if "rope" in wanted:
            inputs["rope"] = self.rope(module, layer)
        if layer.keys.dtype != layer.values.dtype:
            raise HookError(
                f"keys of layer {module.layer_idx} are {dtype_name(layer.keys.dtype)}, its values "
                f"{dtype_name(layer.values.dtype)}; a press needs one dtype; remedy: convert the model "
                "to one, and read the prompt without torch.autocast",
                "hook-dtype",
            )
        if step.state is None:
            step.state = _new_state()
        length = layer.tail()
        with torch.no_grad():
            out = press.compress(
                layer.keys.detach(),
                layer.values.detach(),
                **inputs,
                scale=module.scaling,
                layer=number,
                layers=len(self.order),
                lengths=rows.lengths,
                padding=rows.padding,
                state=step.state,
            )
            layer.seal(Prefix(out.keys, out.values, out.tokens, out.channels), length)

    def rope(self, module, layer):
        """The model's rotary embedding at this layer, as a press wants it: what gives the tables,
        for any position."""
        source = self.decoder().rotary_emb
        frequencies, scaling = self.frequencies(source, module)
        if (
            layer and layer.frequencies is not None
        ):  # since then another prompt may have changed them
            frequencies = layer.frequencies
        return {
            "inverse_frequencies": frequencies,
            "attention_scaling": scaling,
            "layout": "half",  # `check` has seen to it
            "width": 2 * frequencies.shape[-1],
        }

    def kind(self, source, module):
        """Of a layer, where `source` has one table per kind: from 5.0 on."""
        types = getattr(self.decoder().config, "layer_types", None)
        return () if hasattr(source, "inv_freq") else (types[module.layer_idx],)

    def frequencies(self, source, module):
        start = "".join(kind + "_" for kind in self.kind(source, module))
        frequencies = getattr(source, start + "inv_freq").detach()
        return frequencies, float(getattr(source, start + "attention_scaling"))


def dtype_name(dtype):
    return str(dtype).removeprefix("torch.")


def _linear(module):
    return hasattr(module, "out_features") and isinstance(
        getattr(module, "weight", None), torch.Tensor
    )


def _amount(wanted):
    """How many of the last queries (or hidden states) a press wants, from its `inputs`."""
    return wanted if isinstance(wanted, int) else 1 << 40


def _last(x, count, ends):
    """The last `count` queries ([..., query, channel]) of every row; with padding on the right each
    row's end at its own last real token."""
    total = x.shape[-2]
    count = min(count, total)
    if ends is None:
        return x[..., total - count :, :]
    index = ends.to(x.device)[:, None] - count + torch.arange(count, device=x.device)
    index = index.clamp(min=0)  # a row shorter than the window: what precedes it is not read
    index = index.view(x.shape[0], *[1] * (x.dim() - 3), count, 1)
    return x.gather(-2, index.expand(*x.shape[:-2], -1, x.shape[-1]))


def _new_state():
    from . import State

    return State()
