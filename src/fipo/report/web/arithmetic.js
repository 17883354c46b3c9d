// The arithmetic of one token, in full.

const LARGEST_TERMS = 4;

function describeToken(trace, t) {
  const lines = [["token", tokenName(trace, t)]];
  lines.push(["text", piecesOf(trace)[t]]);
  if (trace.logRatio) lines.push(...creditLines(trace, t));
  else lines.push(...recordedLines(trace, t));
  lines.push(["entropy", trace.entropy ? `${number(fromHalf(trace.entropy[t]), 4)} nats` : "unknown"]);
  const marks = flagsOf(trace, t);
  if (!trace.trained[t]) marks.unshift("untrained");
  lines.push(["marks", marks.join(", ") || "none"]);
  return lines;
}

function tokenName(trace, t) {
  const entry = trace.tokens[t];
  const bytes = tokenBytes(entry);
  const shown = Array.from(bytes.subarray(0, 16), (byte) => hex(byte, 2)).join(" ");
  const rest = bytes.length > 16 ? ` … (${bytes.length.toLocaleString("en")} bytes)` : "";
  return `position ${t} of ${trace.length} · id ${page.columns.vocabulary_ids[entry]} · bytes ${shown || "none"}${rest}`;
}

function creditLines(trace, t) {
  const knobs = knobsOf(trace);
  const logRatio = trace.logRatio[t];
  const { futureKl: credit, fipo, weight } = creditOf(trace);
  const trained = Boolean(trace.trained[t]);
  const lines = [["log π_θ − log π_old", logRatioLine(trace, t)], ["ratio", `exp(${number(logRatio)}) = ${number(Math.exp(logRatio))}`]];
  const takesPart = participates(logRatio, trained, knobs);
  const why = !trained ? "not trained" : takesPart ? `trained, ratio ≤ ${number(knobs.dual_clip_c)}` : `ratio > ${number(knobs.dual_clip_c)}`;
  lines.push(["M", `${takesPart ? 1 : 0} (${why})`]);
  lines.push(["future_kl", sumLine(trace, t, knobs, credit[t])]);
  if (!trained) return [...lines, ["weight", "1 (not trained)"]];
  const [low, high] = [weightLow(knobs), weightHigh(knobs)];
  const raw = Math.exp(credit[t]);
  const clipped = clamp(raw, low, high);
  lines.push(["exp(future_kl)", number(raw)]);
  lines.push([`clip to [${number(low)}, ${number(high)}]`, number(clipped)]);
  lines.push(["safety rule", safetyLine(trace, t, knobs, clipped, fipo[t])]);
  if (isControlled(trace)) lines.push(["weight in the loss", `${number(weight[t])} (fipo_control ${page.controls[trace.facts.set]})`]);
  lines.push(["advantage × weight", productLine(advantageAt(trace, t), weight[t])]);
  return lines;
}

function logRatioLine(trace, t) {
  const value = trace.logRatio[t];
  const old = trace.oldLogps ? fromHalf(trace.oldLogps[t]) : NaN;
  if (!trace.trained[t] || Number.isNaN(old) || Math.abs(value) >= LOG_RATIO_LIMIT) return number(value);
  return `${number(old + value, 4)} − (${number(old, 4)}) = ${number(value)}`;
}

function sumLine(trace, t, knobs, total) {
  const terms = contributions(trace.logRatio, trace.trained, knobs, t);
  const later = [];
  for (let k = t + 1; k < terms.length; k++) if (terms[k] !== 0) later.push(k);
  const rest = later.reduce((sum, k) => sum + terms[k], 0);
  const largest = later.sort((a, b) => Math.abs(terms[b]) - Math.abs(terms[a])).slice(0, LARGEST_TERMS);
  const named = largest.map((k) => `${number(terms[k], 3)} at +${k - t}`).join(", ");
  const gamma = `γ = 2^(−1/${number(knobs.decay_rate)}) = ${number(gammaOf(knobs))}`;
  const sum = `${number(terms[t])} (itself) + ${number(rest)} (${later.length} later tokens) = ${number(total)}`;
  return `Σ γ^d · M · log_ratio = ${sum}; ${gamma}${named && `; largest: ${named}`}`;
}

function safetyLine(trace, t, knobs, clipped, weight) {
  const advantage = advantageAt(trace, t);
  const condition = `A < 0 and ratio > ${number(knobs.safety_thresh)}`;
  if (!isRisky(trace.logRatio[t], advantage, knobs)) return `${condition}: no, weight = ${number(weight)}`;
  return `${condition}: yes, ${number(clipped)} clipped to [0.8, 1] = ${number(weight)}`;
}

const productLine = (advantage, weight) =>
  `${number(advantage)} × ${number(weight)} = ${number(advantage * weight)}`;

// An imported trace without log-ratios: what its source told.
function recordedLines(trace, t) {
  const lines = [["credit", "cannot be recovered: this trace has no log-ratio"]];
  if (trace.logps) lines.push(["log π_θ", number(fromHalf(trace.logps[t]), 4)]);
  if (trace.oldLogps) lines.push(["log π_old", number(fromHalf(trace.oldLogps[t]), 4)]);
  if (trace.recordedFutureKl) lines.push(["future_kl", `${number(trace.recordedFutureKl[t])} (recorded)`]);
  if (trace.recordedWeight) lines.push(["weight", `${number(trace.recordedWeight[t])} (recorded)`]);
  return [...lines, ["advantage", number(advantageAt(trace, t))]];
}

function showArithmetic(trace, t) {
  const list = document.getElementById("arithmetic");
  list.replaceChildren();
  for (const [name, content] of t === null ? [] : describeToken(trace, t)) {
    const term = document.createElement("dt");
    const value = document.createElement("dd");
    term.textContent = name;
    if (Array.isArray(content)) showPieces(value, content);
    else value.textContent = content;
    list.append(term, value);
  }
  document.getElementById("arithmetic-hint").hidden = t !== null;
}
