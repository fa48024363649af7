"use strict";
// Renders a line of /v1/stream each second. Text goes in by textContent only: nothing an engine or a process
// is called can become markup.
const hues = ["#4c7dd9", "#2f9e8f", "#c77d2e", "#8f63c9", "#c2577e", "#6b8e3d"];
const grey = { foreign: "#8a8f98", unattributed: "#b0b5bd", headroom: "#c3c8cf" };
const $ = (id) => document.getElementById(id);
const bands = { calm: "yes", tight: "wait", critical: "no", unknown: "wait" };
const names = [];
const opened = new Set();

function el(tag, text, cls) {
  const one = document.createElement(tag);
  if (text !== undefined) one.textContent = text;
  if (cls) one.className = cls;
  return one;
}
function size(bytes) {
  if (bytes === null || bytes === undefined) return "unknown";
  const gib = bytes / 2 ** 30;
  return gib >= 1 ? `${gib.toFixed(2)} GiB` : `${Math.round(bytes / 2 ** 20)} MiB`;
}
// A daemon of another version may not send a field: that is unknown, and the rest is shown.
function said(value) {
  return value === null || value === undefined ? "unknown" : String(value);
}
function hue(name) {
  if (name in grey) return grey[name];
  if (!names.includes(name)) names.push(name);
  return hues[names.indexOf(name) % hues.length];
}
function gpu(one) {
  const box = el("div", undefined, "gpu");
  const head = el("h3", `GPU ${one.index} · ${one.name}`);
  const { free = null, total = null, reserved = 0 } = one.memory ?? {};
  const capacity = total === null ? null : total - reserved;
  const band = one.pressure ?? "unknown";
  const state = el("span", `${said(one.state)} · ${free === null ? "free unknown" : `${size(free)} free`} of ${size(capacity)} · pressure `);
  state.append(el("b", band, bands[band] || "wait"));
  head.append(state);
  const bar = el("div", undefined, "bar");
  const legend = el("ul", undefined, "legend");
  for (const row of one.ledger ?? []) {
    const wide = Math.max(row.cap || 0, row.used || 0);
    const item = el("li");
    const unknown = row.holder !== "headroom" && (row.used ?? null) === null;
    item.style.setProperty("--hue", hue(row.holder));
    item.append(el("i"), row.holder === "headroom" ? `headroom ${size(row.cap)}`
      : row.cap ? `${row.holder} ${size(row.used)} of ${size(row.cap)}` : `${row.holder} ${size(row.used)}`);
    legend.append(item);
    if (wide <= 0 || !capacity) continue;
    const cap = el("div", undefined, row.cap && row.used > row.cap ? "cap over" : "cap");
    cap.title = item.textContent;
    cap.style.setProperty("--hue", hue(row.holder));
    cap.style.width = `${(100 * wide) / capacity}%`;
    if (unknown) cap.classList.add("unknown"); // no bar at all: an empty one would read as 0
    else {
      const used = el("div", undefined, "used");
      used.style.width = `${(100 * (row.used || 0)) / wide}%`;
      cap.append(used);
    }
    bar.append(cap);
  }
  box.append(head, bar, legend, ...(one.ladder ? ladder(one) : []));
  return box;
}
// What presses is said at once; the whole arithmetic and the candidates are one click away.
function ladder(one) {
  const { reason, why = [], reclaim, braked = {}, loads_held, fault } = one.ladder;
  const urgent = [];
  if (one.pressure !== "calm") urgent.push(reason);
  if (typeof one.time_to_full_s === "number") urgent.push(`full in ${one.time_to_full_s.toFixed(1)} s`);
  if (reclaim) urgent.push(reclaim.text);
  if (loads_held) urgent.push(`no model may be loaded: ${loads_held}`);
  for (const [name, text] of Object.entries(braked)) urgent.push(`${name} is braked: ${text}`);
  if (fault) urgent.push(`nothing is started there: ${fault}`);
  const list = el("ul", undefined, "urgent");
  list.append(...urgent.filter(Boolean).map((text) => el("li", text)));
  const more = el("details");
  more.open = opened.has(one.uuid);
  more.addEventListener("toggle", () => opened[more.open ? "add" : "delete"](one.uuid));
  const all = el("ul");
  all.append(...why.map((text) => el("li", text, text.startsWith("chosen:") ? "no" : "")));
  more.append(el("summary", "why"), all);
  return [list, more];
}
function cap(one) {
  const item = el("li");
  const where = one.index === null ? one.gpu : `GPU ${one.index}`;
  const now = one.on_cpu ? "on the CPU" : `${size(one.cap_bytes)}, ${size(one.lowered_bytes)} less than configured`;
  item.append(el("strong", one.backend), ` mode ${one.mode}, ${where}: ${now}: ${one.reason} `,
    el("small", `${one.ooms === 1 ? "once" : `${one.ooms} times`}, last ${new Date(one.at).toLocaleString()}${one.applies ? "" : ", not in force now"}; undo: arbiterctl caps reset ${one.backend}`));
  return item;
}
function backend(one) {
  const row = el("tr");
  const takes = one.accepting ? "yes" : "no";
  const phase = ["ready"].includes(one.phase) ? "yes" : ["failed"].includes(one.phase) ? "no" : "wait";
  const name = el("td");
  if (one.url) { const link = el("a", one.name); link.href = one.url; name.append(link); } else name.textContent = one.name;
  row.append(name, el("td", said(one.phase), phase),
    el("td", one.accepting ? "yes" : `no, ask again in ${said(one.retry_after_s)} s`, takes),
    el("td", one.gpu && !one.gpu.length ? "CPU" : `${size(one.used_bytes)} / ${size(one.cap_bytes)}`),
    el("td", typeof one.throttled === "number" ? `${said(one.in_flight)} of at most ${one.throttled}` : said(one.in_flight)),
    el("td", said(one.restarts)), el("td", one.reason ?? ""));
  return row;
}
function incident(one) {
  const item = el("li", undefined, one.closed_at ? "" : "open");
  const when = new Date(one.opened_at).toLocaleTimeString();
  item.append(el("strong", `${one.event} ${one.backend}`), ` ${one.summary} `,
    el("small", `${one.id}, ${when}${one.closed_at ? `, over ${new Date(one.closed_at).toLocaleTimeString()}` : ", open"}`));
  return item;
}
// What is shown is only as true as it is young: an answer that fails greys the page and says since when.
let heard = null;
function dead(why) {
  document.body.classList.add("dead");
  const since = heard ? `what is shown is of ${heard.toLocaleTimeString()}` : "nothing has been heard yet";
  $("dead").textContent = `The daemon does not answer (${why}); ${since}. Next: systemctl status gpu-arbiter`;
  $("dead").hidden = false;
  document.title = "gpu-arbiter: does not answer";
}
// One part that cannot be drawn leaves the others standing, and says so in its place.
function part(id, draw) {
  try {
    draw();
  } catch (error) {
    $(id).textContent = `cannot be shown: ${error.message}`;
  }
}
function rows(id, all, draw, none) {
  part(id, () => $(id).replaceChildren(...(all.length || !none ? all.map(draw) : [none])));
}
function header(status) {
  const { loop = {}, config = {} } = status;
  $("head").textContent = `mode ${said(status.mode)} (${said(status.sharing)}) · ${said(config.path)} · tick ${said(loop.tick)}, ${said(loop.last_tick_ms)} ms`;
  const notes = [...(status.notes ?? []), ...(status.config_refused ?? []).map((text) => `refused: ${text}`)];
  if (loop.blind) notes.unshift(`blind: ${loop.nvml || "a GPU cannot be read"}`);
  if (status.config_pending) notes.unshift("the file was edited, not applied: systemctl reload gpu-arbiter");
  $("notes").textContent = notes.join(" · ");
}
function show({ status = {}, incidents, caps = [] }) {
  const backends = status.backends ?? [];
  part("head", () => header(status));
  rows("gpus", status.gpus ?? [], gpu);
  rows("backends", backends, backend);
  $("learned").hidden = !caps.length;
  rows("caps", caps, cap);
  rows("incidents", incidents ?? [], incident, el("li", incidents ? "none" : "cannot be read"));
  document.title = `gpu-arbiter: ${backends.filter((one) => one.accepting).length}/${backends.length} ready`;
  heard = new Date();
  document.body.classList.remove("dead");
  $("dead").hidden = true;
}
// The daemon ends its stream now and then, and looks at who asks again.
async function follow() {
  const silence = new AbortController();
  let timer;
  const wait = () => {
    clearTimeout(timer);
    timer = setTimeout(() => silence.abort(new DOMException("", "TimeoutError")), 5000);
  };
  try {
    wait();
    const reply = await fetch("v1/stream", { cache: "no-store", signal: silence.signal });
    if (!reply.ok) throw new Error(`v1/stream answers ${reply.status}`);
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      wait();
      text += value;
      const end = text.lastIndexOf("\n");
      if (end < 0) continue;
      show(JSON.parse(text.slice(text.lastIndexOf("\n", end - 1) + 1, end)));
      text = text.slice(end + 1);
    }
  } catch (error) {
    dead(error.name === "TimeoutError" ? "no answer within 5 s" : error.message);
  }
  clearTimeout(timer);
  setTimeout(follow, 1000);
}
follow();
