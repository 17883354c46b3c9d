// Keys for readers who do not take the hand to the mouse.

import { byId } from "../dom.js";
import { change, report, state } from "../state.js";
import { activateToken, stepLine, stepToken } from "./credit.js";
import { focusSearch, stepSample } from "./samples.js";

/** @type {Record<string, () => void>} */
const KEYS = {
  j: () => stepSample(1),
  k: () => stepSample(-1),
  g: () => toggleMode("group"),
  u: () => toggleMode("updates"),
  ArrowRight: () => stepToken(1),
  ArrowLeft: () => stepToken(-1),
  ArrowDown: () => stepLine(1),
  ArrowUp: () => stepLine(-1),
  Home: () => activateToken(0),
  End: () => activateToken(Infinity),
  Enter: () => state.active !== null && change({ selected: state.selected === state.active ? null : state.active }),
  Escape: () => change({ selected: null }),
};

/** On the list of samples the keys for moving choose samples, as in any list. @type {typeof KEYS} */
const LIST_KEYS = {
  ArrowDown: () => stepSample(1),
  ArrowUp: () => stepSample(-1),
  Home: () => stepSample(-Infinity),
  End: () => stepSample(Infinity),
};

/** @type {Record<string, string[]>} the keys that an element needs for itself */
const OWN_KEYS = { button: ["Enter"], summary: ["Enter"], "[role=tab]": ["ArrowLeft", "ArrowRight"] };

/** @type {(mode: string) => void} */
const toggleMode = (mode) => change({ mode: state.mode === mode ? "one" : mode });

export const setUpKeyboard = () => addEventListener("keydown", onKey);

/** @type {(event: KeyboardEvent) => void} */
function onKey(event) {
  const { key } = event;
  const target = event.target instanceof HTMLElement ? event.target : document.body;
  const help = byId("help", HTMLDialogElement);
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = target.matches("input, select, textarea");
  if (typing && key === "Escape") target.blur();
  if (typing || help.open) return;
  if (key === "?") return help.showModal();
  if (report.traces.length === 0) return;
  if (key === "/") return void (event.preventDefault(), focusSearch());
  if (state.tab !== "credit") return;
  const channel = report.channels[Number(key) - 1];
  if (channel) return change({ channel: channel.name, selected: null });
  if (Object.entries(OWN_KEYS).some(([selector, own]) => target.matches(selector) && own.includes(key))) return;
  const keys = target.id === "samples" ? { ...KEYS, ...LIST_KEYS } : KEYS;
  if (!Object.hasOwn(keys, key)) return;
  event.preventDefault();
  keys[key]();
}
