// The types that the modules share. Only the type check reads this file.

import type { NO_FILTERS } from "./model/filters.js";

export type Numbers = ArrayLike<number>;
export type Column = Uint8Array | Uint32Array | Int32Array | Float32Array;
export type Filters = typeof NO_FILTERS; // what was typed; "" lets all pass

/** As in fipo.params. */
export interface Knobs {
  decay_rate: number; // half-life in tokens
  clip_ratio_low: number;
  clip_ratio_high: number;
  clip_high_only: boolean;
  safety_thresh: number;
  dual_clip_c: number;
  distance: "position" | "trained";
}

export type Moved = Partial<Knobs>; // the knobs that the reader has moved

/** A knob in fipo.params.KNOBS. */
export interface KnobRange {
  default: number | string | boolean; // of the type that the knob has
  help: string;
  low: number;
  high: number;
  low_open: boolean; // whether the end itself is excluded
  high_open: boolean;
  choices: string[]; // all values, where they are names
}

/** One trace without its tokens: a line of fipo.report.pack's index. */
export interface Facts {
  set: number; // its file or folder in Report.sets
  run: string;
  rollout: number;
  update: number;
  group: number;
  sample: number;
  prompt: number; // in Report.prompts
  reward: number | null;
  rewards: Record<string, number | null>; // by function
  dropped: boolean;
  truncated: boolean | null;
  stop_reason: string | null;
  length: number; // tokens
  advantage: number | null; // of every trained token; null if they differ or nobody knows
  sign: number | null; // of their mean
  anyFlags: number; // bits that some token has
  at: Record<string, number>; // where its part of each column starts
}

export interface Vocabulary {
  ids: Int32Array;
  ends: Uint32Array; // where each entry's bytes end
  bytes: Uint8Array;
}

/** What the traces of a file or folder were made with. */
export interface TraceSet {
  analysis: Analysis | { warnings: string[] }; // the second where nothing can be analysed
  knobs: Knobs;
  known: boolean; // whether the knobs are recorded, or fipo's defaults
  control: string | null;
  label: string;
  updates: number | null; // a rollout, where known; 0 where the metrics have one step a rollout
}

export interface Chart {
  title: string;
  figure: { data: { showlegend?: boolean }[]; layout: Record<string, any> };
}

export interface Report {
  about: { title: string; problems: string[]; version: string; knobs: Record<string, KnobRange>; live: boolean }; // problems: what was left out
  charts: Chart[] | null;
  tracedSteps: number[]; // the first step of every rollout with traces
  traces: Facts[];
  prompts: string[];
  sets: TraceSet[];
  flags: Record<string, number>; // name → bit
  trainedBit: number;
  channels: Channel[];
  columns: Record<string, Column>; // over all traces
  vocabulary: Vocabulary;
  spans: Record<string, number>; // by channel
}

/** One trace. Columns are per token; one that nobody recorded is null. */
export interface Trace {
  index: number; // in Report.traces
  facts: Facts;
  made: TraceSet;
  length: number; // tokens
  tokens: Uint32Array; // entries of the vocabulary
  vocabulary: Vocabulary;
  flags: Uint8Array;
  flagBits: Record<string, number>;
  trained: Uint8Array; // not 0: trained
  columns: Record<string, Column | null>; // those of fipo.report.pack
  logRatio: Column | null;
  pieces: Piece[][] | null;
  search: string | null;
}

/** A trace whose credit can be recomputed. */
export type MeasuredTrace = Trace & { logRatio: Column };

/** `weight` is what the loss used; it differs from FIPO's where a rule or a control replaced that. */
export type Credit = { futureKl: Numbers; fipo: Numbers; weight: Numbers };

/** Plain text, or a box: "bad" bytes, "part" of a character, a "code" point that does not show, "cut" text. */
export type Piece = { text: string; box?: string };

/** As in fipo.report.channels. */
export interface Channel {
  name: string;
  label: string;
  help: string;
  dtype: string;
  unit: string;
  neutral: number | null; // null: all values lie on one side
  scale: string; // linear, log or bounds
}
export type Scale = Channel & { span: number }; // how far from neutral its ends lie; in log, where the scale is

/** What painting the tokens of a trace needs to know. */
export type Brush = { scale: Scale; value: (t: number) => number; matches: Set<number> };

export interface View {
  tab: string;
  at: number; // index of the trace shown
  mode: string; // this trace, its group, or its completion across updates
  watched: string; // run.rollout, in a live report
  sort: string; // what orders the list
  channel: string;
  selected: number | null; // the token whose future_kl is taken apart
  active: number | null; // the token that the keyboard is on
  filters: Filters;
  knobs: Moved;
}

export type Changed = (...names: (keyof View)[]) => boolean; // whether one of these parts of the view is another one now

/** The weights of some trained tokens. */
export interface Weights {
  tokens: number;
  mean: number;
  above: number; // share above 1
  below: number;
}

/** As fipo.traces.analysis makes it. */
export interface Analysis {
  completions: number;
  tokens: number;
  weight: { mean: number; std: number; min: number; max: number; deciles: number[]; at_low: number; at_high: number };
  flags: Record<string, number>; // share of tokens
  what_if: { decay_rate: number | string; clip_ratio: number; std: number; at_low: number; at_high: number }[];
  noise_floor: { log_ratio: number; weight_shift: number } | null;
  rounding: { log_ratio: number; weight: number; unsure: number } | null; // expected from the forward's precision
  parts: (Weights & { part: number })[]; // of the response
  kinds: (Weights & { kind: string })[];
  rollouts: (Weights & { kind: string; run: string; rollout: number })[];
  amplified: (Weights & { token: string })[];
  attenuated: (Weights & { token: string })[];
  warnings: string[];
}

/** What `fipo watch` says of the runs. */
export interface LiveState {
  charts: number; // another one whenever the curves have changed
  runs: LiveRun[];
}

export interface LiveRun {
  label: string;
  status: string;
  updates: number | null; // a rollout, where known; 0 where the metrics have one step a rollout
  age: number | null; // seconds since its last trace was written
  rollouts: [number, string][]; // number, and what changes with its traces
}
