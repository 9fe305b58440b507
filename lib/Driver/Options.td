//===- Options.td - command lines of kvpc -----------------------------------------------------===//
include "llvm/Option/OptParser.td"

// One visibility a command.
def CompileOption : OptionVisibility;
def CheckOption : OptionVisibility;
def FmtOption : OptionVisibility;
def InspectOption : OptionVisibility;
def ExplainOption : OptionVisibility;
def RunOption : OptionVisibility;

defvar Everywhere = [CompileOption, CheckOption, FmtOption, InspectOption, ExplainOption, RunOption];
defvar Building = [CompileOption, ExplainOption, RunOption];
defvar Reading = [CompileOption, CheckOption, ExplainOption, RunOption];

def help : Flag<["--", "-"], "help">, Visibility<Everywhere>, HelpText<"Display this text">;
def h : Flag<["-"], "h">, Alias<help>, Visibility<Everywhere>;

// The program.
def D : JoinedOrSeparate<["-"], "D">, Visibility<Reading>, MetaVarName<"[<press>.]<name>=<value>">,
  HelpText<"Fix a parameter; the value is source text, as in inner='tova()'">;
def I : JoinedOrSeparate<["-"], "I">, Visibility<Reading>, MetaVarName<"<dir>">,
  HelpText<"Look for imports in <dir>, after the folder of the file">;
def press_EQ : Joined<["--"], "press=">, Visibility<Reading>, MetaVarName<"<name>">,
  HelpText<"This press alone">;
def press : Separate<["--"], "press">, Alias<press_EQ>, Visibility<Reading>;

// Code.
def o : JoinedOrSeparate<["-"], "o">, Visibility<[CompileOption]>, MetaVarName<"<file>">,
  HelpText<"Write the output to <file>; `-` is the standard output">;
def emit_EQ : Joined<["--"], "emit=">, Visibility<[CompileOption]>, MetaVarName<"<kind>">,
  HelpText<"What to write: ast, kvp, plan, mlir, llvm, asm, obj or module (the default)">;
def O : Joined<["-"], "O">, Visibility<Building>, MetaVarName<"<level>">,
  HelpText<"0: one pass over the data for each operation; 2: fused (the default)">;
def dtype_EQ : CommaJoined<["--"], "dtype=">, Visibility<Building>, MetaVarName<"<dtype>,...">,
  HelpText<"Dtypes of the cache: f32, bf16, f16 (default: the first two)">;
def channels_EQ : CommaJoined<["--"], "channels=">, Visibility<Building>, MetaVarName<"<n>,...">,
  HelpText<"Head sizes to specialise for; 0 takes any (default: 64,128,0)">;
def target_EQ : CommaJoined<["--"], "target=">, Visibility<Building>, MetaVarName<"<level>,...">,
  HelpText<"Instruction sets: x86-64-v3, x86-64-v4, x86-64-v4+avx512bf16 (default: all)">;
def workspace_EQ : Joined<["--"], "workspace=">, Visibility<Building>, MetaVarName<"<fraction>">,
  HelpText<"Hold wide values in this fraction of the keys' bytes at most, and make again what does not fit; 0: hold none (default: two work items a thread)">;
def without_EQ : CommaJoined<["--"], "without=">, Visibility<Building>, MetaVarName<"<name>,...">,
  HelpText<"Leave out optimisations, to see what they are worth: algebra, fusion, microkernel, exponents, tiles, weighing">;

// Formatting.
def check : Flag<["--"], "check">, Visibility<[FmtOption]>,
  HelpText<"Write nothing; exit with 1 and name the files that are not formatted">;
def i : Flag<["-"], "i">, Visibility<[FmtOption]>, HelpText<"Format the files in place">;

def json : Flag<["--"], "json">, Visibility<[InspectOption, ExplainOption]>,
  HelpText<"Print JSON">;

// Running.
def reference : Flag<["--"], "reference">, Visibility<[RunOption]>,
  HelpText<"Run the reference interpreter instead of compiled code">;
def input_EQ : Joined<["--"], "input=">, Visibility<[RunOption]>, MetaVarName<"<file>">,
  HelpText<"Take keys, values, queries, ... from a safetensors file">;
def input : Separate<["--"], "input">, Alias<input_EQ>, Visibility<[RunOption]>;
def output_EQ : Joined<["--"], "output=">, Visibility<[RunOption]>, MetaVarName<"<file>">,
  HelpText<"Write the results to a safetensors file">;
def output : Separate<["--"], "output">, Alias<output_EQ>, Visibility<[RunOption]>;
def shape_EQ : CommaJoined<["--"], "shape=">, Visibility<[RunOption, ExplainOption]>,
  MetaVarName<"B,H,G,n,D">,
  HelpText<"Batch, heads, groups, tokens, channels: of random tensors in place of --input, or of the "
           "call that costs are given for">;
def seed_EQ : Joined<["--"], "seed=">, Visibility<[RunOption]>, MetaVarName<"<n>">,
  HelpText<"Seed of the random tensors (default: 0)">;
def set_EQ : Joined<["--"], "set=">, Visibility<[RunOption]>, MetaVarName<"<name>=<value>">,
  HelpText<"A run-time parameter: 64, 0.5, true, drop(0.5), keep(1024); [0.9, 0.5], one a layer">;
def set : Separate<["--"], "set">, Alias<set_EQ>, Visibility<[RunOption]>;
def scores : Flag<["--"], "scores">, Visibility<[RunOption]>,
  HelpText<"Write the scores of the first stage instead of a selection">;
def given_scores_EQ : Joined<["--"], "given-scores=">, Visibility<[RunOption]>,
  MetaVarName<"<file>">,
  HelpText<"With --reference: select by `scores.<i>` (and `protected.<i>`) of a safetensors file "
           "in place of the i-th selection's own scores">;
def layer_EQ : Joined<["--"], "layer=">, Visibility<[RunOption]>, MetaVarName<"<n>">,
  HelpText<"Number of the attention layer (default: 0)">;
def layers_EQ : Joined<["--"], "layers=">, Visibility<[RunOption]>, MetaVarName<"<n>">,
  HelpText<"Attention layers of the model (default: 1)">;
def scale_EQ : Joined<["--"], "scale=">, Visibility<[RunOption]>, MetaVarName<"<x>">,
  HelpText<"Scale of attention logits (default: 1 / sqrt(channels))">;
def rope_scaling_EQ : Joined<["--"], "rope-scaling=">, Visibility<[RunOption]>,
  MetaVarName<"<x>">, HelpText<"What the model multiplies rotated vectors by (default: 1)">;
def rope_interleaved : Flag<["--"], "rope-interleaved">, Visibility<[RunOption]>,
  HelpText<"Rotary pairs are neighbouring channels instead of halves">;
def state_EQ : Joined<["--"], "state=">, Visibility<[RunOption]>, MetaVarName<"<file>">,
  HelpText<"What layers share: read if it is there, written at the end">;
def state : Separate<["--"], "state">, Alias<state_EQ>, Visibility<[RunOption]>;

// For the tests of crash handling.
def debug_crash_EQ : Joined<["--"], "debug-crash=">, Visibility<Everywhere>, Flags<[HelpHidden]>;
