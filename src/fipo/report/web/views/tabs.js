// The three tabs, and which part of the report each one shows.

import { byId } from "../dom.js";
import { change, report, state, TABS, tabsOf } from "../state.js";

export function setUpTabs() {
  for (const name of TABS) byId(`tab-${name}`).addEventListener("click", () => change({ tab: name }));
  byId("tabs").addEventListener("keydown", (event) => {
    const direction = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!direction) return;
    const tabs = tabsOf(report);
    const next = tabs[(tabs.indexOf(state.tab) + direction + tabs.length) % tabs.length];
    change({ tab: next });
    byId(`tab-${next}`).focus();
  });
}

export function drawTabs() {
  const tabs = tabsOf(report);
  for (const name of TABS) {
    const chosen = name === state.tab;
    const button = byId(`tab-${name}`);
    button.hidden = !tabs.includes(name);
    button.ariaSelected = String(chosen);
    button.tabIndex = chosen ? 0 : -1;
    byId(name).hidden = !chosen;
  }
  byId("filters").hidden = state.tab !== "credit";
}
