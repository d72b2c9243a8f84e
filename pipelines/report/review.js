// Look at the photos of an archive and decide on their positions. Everything shown is set as text, never as HTML.
// A decision is kept in this browser at once; "Save decisions" writes the file that `folio geotag --apply` takes.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const rows = data.rows.map((values) => Object.fromEntries(data.fields.map((name, at) => [name, values[at]])));
  const byId = new Map(rows.map((row) => [row.id, row]));
  const MARKS = {
    confident: "●", doubtful: "▲", unknown: "■", interpolated: "◆", accepted: "⊕", corrected: "★", refused: "✕",
  };
  const DONE = { accept: "accepted", correct: "corrected", refuse: "refused" };
  const PAGE = 100; // photos in the list at once
  const KEY = `folio-decisions ${location.pathname}`;
  const $ = (id) => document.getElementById(id);

  const decided = new Map(); // id -> {decision, lat, lon, note, saved}
  let shown = []; // what the list holds
  let current = null;
  let correcting = false;

  // What is known of a photo

  const byHand = (row) => Object.values(DONE).includes(row.kind);
  const sureness = (row) => row.probability ?? row.support;
  const folderOf = (uri) => uri.slice(0, Math.max(uri.lastIndexOf("/"), 0));
  const nameOf = (uri) => uri.slice(uri.lastIndexOf("/") + 1);
  const foundKind = (row) => (row.best_lat === null ? "unknown" : "doubtful");

  function kindNow(row) {
    const said = decided.get(row.id);
    return said === undefined ? row.kind : DONE[said.decision] ?? foundKind(row);
  }

  function found(row) {
    if (row.lat !== null) return [row.lat, row.lon];
    return row.best_lat === null ? null : [row.best_lat, row.best_lon];
  }

  function place(row) {
    const said = decided.get(row.id);
    if (said !== undefined && said.lat !== null) return [said.lat, said.lon];
    return found(row) ?? (row.known_lat === null ? null : [row.known_lat, row.known_lon]);
  }

  // Positions: Mercator's plane, scaled to metres in the middle of the archive

  const EARTH_M = 6371008.8;
  const rad = (degrees) => (degrees * Math.PI) / 180;
  const wrapped = (lon) => ((((lon + 180) % 360) + 360) % 360) - 180;
  const stretched = (lat) => Math.asinh(Math.tan(rad(Math.min(Math.max(lat, -89), 89))));
  const middle = (() => {
    const places = [...rows.map(place).filter(Boolean), ...data.coverage].sort((a, b) => a[0] - b[0]);
    return places[Math.floor(places.length / 2)] ?? [0, 0];
  })();
  const scale = EARTH_M * Math.cos(rad(Math.min(Math.max(middle[0], -89), 89)));

  const project = ([lat, lon]) => [scale * rad(wrapped(lon - middle[1])), scale * (stretched(lat) - stretched(middle[0]))];

  function unproject(x, y) {
    const lat = (Math.atan(Math.sinh(y / scale + stretched(middle[0]))) * 180) / Math.PI;
    return [round7(lat), round7(wrapped(middle[1] + ((x / scale) * 180) / Math.PI))];
  }

  const round7 = (degrees) => Math.round(degrees * 1e7) / 1e7;

  function metresBetween([lat, lon], [lat2, lon2]) {
    const half = (a, b) => Math.sin(rad(b - a) / 2) ** 2;
    const chord = half(lat, lat2) + Math.cos(rad(lat)) * Math.cos(rad(lat2)) * half(lon, lon2);
    return 2 * EARTH_M * Math.asin(Math.min(1, Math.sqrt(chord)));
  }

  function metres(distance) {
    if (distance < 9.95) return `${distance.toFixed(1)} m`;
    if (distance < 999.5) return `${distance.toFixed(0)} m`;
    const kilometres = distance / 1000;
    return kilometres < 9.95 ? `${kilometres.toFixed(1)} km` : `${Math.round(kilometres).toLocaleString("en")} km`;
  }

  const degrees = ([lat, lon]) => `${lat.toFixed(6)}, ${lon.toFixed(6)}`;

  function problem(lat, lon) {
    if (!(Math.abs(lat) <= 90 && Math.abs(lon) <= 180)) return "latitude goes from -90 to 90, longitude from -180 to 180";
    return lat === 0 && lon === 0 ? "0, 0 is what a camera without a fix writes" : null;
  }

  // Decisions, kept in this browser

  const say = (text) => { $("said").textContent = text; };

  function keep() {
    try {
      localStorage.setItem(KEY, JSON.stringify([...decided]));
    } catch {
      say("This browser keeps no decisions for this page: save them before you close it.");
    }
  }

  function isApplied(row, said) {
    if (said.decision === "undo") return !byHand(row);
    if (row.kind !== DONE[said.decision]) return false;
    return said.decision !== "correct" || (Math.abs(said.lat - row.lat) < 1e-6 && Math.abs(said.lon - row.lon) < 1e-6);
  }

  function isDecision(said) {
    if (said === null || typeof said !== "object" || !["accept", "correct", "refuse", "undo"].includes(said.decision)) return false;
    if (typeof said.lat === "number" && typeof said.lon === "number") return problem(said.lat, said.lon) === null;
    return said.lat === null && said.lon === null && said.decision !== "correct";
  }

  function takeUp(id, said) {
    const row = byId.get(id);
    if (row === undefined || !isDecision(said)) return false;
    if (!isApplied(row, said)) decided.set(id, said);
    return true;
  }

  function recall() {
    try {
      for (const [id, said] of JSON.parse(localStorage.getItem(KEY) ?? "[]")) takeUp(id, said);
    } catch {
      say("What this browser kept for this page cannot be read. Load the file you saved.");
    }
  }

  function decide(decision, position) {
    const [lat, lon] = position ?? [null, null];
    const row = current;
    decided.set(row.id, { decision, lat, lon, note: $("note").value.trim(), saved: false });
    keep();
    stopCorrecting();
    refresh();
    step(1, (other) => !decided.has(other.id));
    say(`${DONE[decision] ?? "taken back"}: ${nameOf(row.uri)}`);
  }

  const actions = {
    accept: () => { if (found(current)) decide("accept", found(current)); },
    correct: () => startCorrecting(),
    refuse: () => decide("refuse", null),
    undo: () => {
      const row = current;
      if (decided.delete(row.id)) {
        keep();
        stopCorrecting();
        refresh();
        show(row);
        say(`not decided any more: ${nameOf(row.uri)}`);
      } else if (byHand(row)) {
        decide("undo", null);
      }
    },
    next: () => step(1),
    previous: () => step(-1),
  };

  function asFile() {
    const decisions = [...decided].map(([id, said]) => ({
      query_id: id, uri: byId.get(id).uri, decision: said.decision, lat_deg: said.lat, lon_deg: said.lon, note: said.note,
    }));
    return JSON.stringify({ format_version: data.format_version, map_version: data.map_version, decisions }, null, 1);
  }

  function save() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([asFile()], { type: "application/json" }));
    link.download = "decisions.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    for (const said of decided.values()) said.saved = true;
    keep();
    refresh();
    say("Saved as decisions.json. Next: folio geotag --out DIR --apply decisions.json");
  }

  async function load(file) {
    let stored;
    try {
      stored = JSON.parse(await file.text());
    } catch {
      stored = null;
    }
    if (stored?.format_version !== data.format_version || !Array.isArray(stored.decisions)) {
      say(`${file.name} holds no decisions that this page reads.`);
      return;
    }
    const taken = stored.decisions.filter((entry) => takeUp(entry?.query_id, {
      decision: entry?.decision, lat: entry?.lat_deg ?? null, lon: entry?.lon_deg ?? null, note: String(entry?.note ?? ""), saved: true,
    })).length;
    const left = stored.decisions.length - taken;
    keep();
    refresh();
    if (current) show(current);
    say(`${taken.toLocaleString("en")} decisions loaded${left ? `; ${left.toLocaleString("en")} left out: not of this archive, or no decisions` : ""}.`);
  }

  // The list

  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  const ORDERS = { // "worth" is how they come
    worth: () => 0,
    least: (a, b) => sureness(a) - sureness(b),
    surest: (a, b) => sureness(b) - sureness(a),
    name: (a, b) => (a.uri < b.uri ? -1 : 1),
  };

  function filter() {
    const kinds = new Set([...document.querySelectorAll("[name=kind]:checked")].map((box) => box.value));
    const folder = $("folder").value;
    shown = rows.filter((row) => kinds.has(row.kind) && (!folder || row.uri.startsWith(`${folder}/`))).sort(ORDERS[$("order").value]);
    fillList(0);
    drawPhotos();
  }

  function listed(row) {
    const item = element("li");
    const button = element("button");
    button.type = "button";
    button.dataset.id = row.id;
    fillButton(button, row);
    button.addEventListener("click", () => show(row));
    item.append(button);
    return item;
  }

  function fillButton(button, row) {
    const kind = kindNow(row);
    const mark = element("b", `is-${kind}`, MARKS[kind]);
    mark.title = kind;
    mark.setAttribute("role", "img");
    mark.setAttribute("aria-label", kind);
    const name = element("span", "name", nameOf(row.uri));
    name.dir = "auto";
    const folder = element("span", "folder", folderOf(row.uri));
    folder.dir = "auto";
    button.replaceChildren(mark, name, element("span", "quiet", kind === "unknown" ? "" : sureness(row).toFixed(2)), folder);
    if (row === current) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
    button.tabIndex = row === current ? 0 : -1; // one stop for Tab, however long the list
  }

  function fillList(start) {
    const stop = Math.min(start + PAGE, shown.length);
    $("list").dataset.start = start;
    $("list").replaceChildren(...shown.slice(start, stop).map(listed));
    $("page").textContent = shown.length
      ? `${(start + 1).toLocaleString("en")} to ${stop.toLocaleString("en")} of ${shown.length.toLocaleString("en")}`
      : "no photo is of these kinds";
    if (stop > start && !shown.slice(start, stop).includes(current)) $("list").querySelector("button").tabIndex = 0;
    $("earlier").disabled = start === 0;
    $("later").disabled = stop >= shown.length;
  }

  function refresh() {
    for (const button of $("list").querySelectorAll("button")) fillButton(button, byId.get(button.dataset.id));
    const unsaved = [...decided.values()].filter((said) => !said.saved).length;
    $("count").textContent = `${decided.size.toLocaleString("en")} decided${unsaved ? `, ${unsaved.toLocaleString("en")} not saved` : ""}`;
    $("save").disabled = decided.size === 0;
    drawPhotos();
  }

  function step(by, wanted = () => true) {
    for (let at = shown.indexOf(current) + by; at >= 0 && at < shown.length; at += by) {
      if (wanted(shown[at])) {
        show(shown[at]);
        return;
      }
    }
    show(current);
  }

  // One photo

  function show(row) {
    if (row !== current) stopCorrecting();
    current = row;
    const at = shown.indexOf(row);
    const start = at < 0 ? Number($("list").dataset.start) : at - (at % PAGE);
    if (Number($("list").dataset.start) !== start) fillList(start);
    for (const button of $("list").querySelectorAll("button")) fillButton(button, byId.get(button.dataset.id));
    const active = $("list").querySelector("[aria-current]");
    if (active) { // not scrollIntoView, which would also move the page
      const item = active.parentElement, list = $("list");
      if (item.offsetTop < list.scrollTop) list.scrollTop = item.offsetTop;
      else if (item.offsetTop + item.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = item.offsetTop + item.offsetHeight - list.clientHeight;
    }
    const said = decided.get(row.id);
    const kind = kindNow(row);
    $("one").hidden = false;
    $("name").textContent = nameOf(row.uri);
    $("where").textContent = folderOf(row.uri);
    $("badge").className = `badge is-${kind}`;
    $("badge").textContent = `${MARKS[kind]} ${said?.decision === "undo" ? "as it was found, once applied" : kind}`;
    $("reason").textContent = said ? "decided in this page" : row.reason ?? "";
    $("note").value = said?.note ?? "";
    $("facts").replaceChildren(...facts(row).map(([term, ...lines]) => {
      const pair = element("div");
      pair.append(element("dt", "", term), ...lines.map((line) => element("dd", "", line)));
      return pair;
    }));
    $("evidence").replaceChildren(...evidence(row));
    $("accept").disabled = found(row) === null;
    $("undo").disabled = said === undefined && !byHand(row);
    const places = drawPlaces(row);
    if (places.length) fit(places, 150);
    say(at < 0 ? "" : `Photo ${(at + 1).toLocaleString("en")} of ${shown.length.toLocaleString("en")}`);
  }

  function facts(row) {
    const said = decided.get(row.id);
    const pairs = [];
    if (said && said.lat !== null) pairs.push(["your position", degrees([said.lat, said.lon])]);
    if (found(row)) {
      const error = row.lat === null ? row.best_error_m : row.error_m;
      pairs.push([row.lat === null ? "best position, not given" : "position", degrees(found(row)) + (error === null ? "" : `  ±${metres(error)}`)]);
    }
    if (row.probability !== null) pairs.push(["probability", row.probability.toFixed(2)]);
    pairs.push(["evidence that agrees", `${Math.round(100 * row.support)} %`]);
    if (row.matches !== null) pairs.push(["matches", String(row.matches)]);
    if (row.known_lat !== null) {
      const off = row.known_off_m === null ? "" : `${metres(row.known_off_m)} from the one found; it stays as it is`;
      pairs.push(["the photo itself says", degrees([row.known_lat, row.known_lon]), ...(off ? [off] : [])]);
    }
    if (row.copies) pairs.push(["exact copies", `${row.copies}, which follow it`]);
    return pairs;
  }

  function evidence(row) {
    const shownOf = data.evidence[row.id];
    if (shownOf === undefined) {
      return [element("p", "quiet", "There are no pictures of this photo in this page.")];
    }
    const pair = element("div", "photos");
    pair.append(figure(shownOf.query, shownOf.query_regions, "asked", row.uri, ""));
    const away = shownOf.candidate_away_m;
    const none = found(row) === null ? "Nothing was found." : "What was found is left out of these results.";
    const more = shownOf.cosine === null ? "" : `cosine ${shownOf.cosine.toFixed(3)}${away > 25 ? ` · ${metres(away)} from the position` : ""}`;
    pair.append(figure(shownOf.candidate, shownOf.candidate_regions, "found", shownOf.candidate_uri, more, none));
    if (shownOf.cosine === null) return [pair];
    if (!shownOf.alternatives.length) return [pair, element("p", "quiet", "No candidate speaks for another place.")];
    const list = element("ol", "alternatives");
    list.append(...shownOf.alternatives.map((other, at) => {
      const item = element("li");
      const detail = [other.away_m === null ? "" : `${metres(other.away_m)} away`, other.matches === null ? "" : `${other.matches} matches`];
      const take = element("button", "", `Take place ${at + 1}`);
      take.type = "button";
      take.addEventListener("click", () => decide("correct", [other.lat, other.lon]));
      item.append(figure(other.picture, [], String(at + 1), other.uri && nameOf(other.uri), detail.filter(Boolean).join(" · ")), take);
      return item;
    }));
    return [pair, element("h3", "", "Other places"), list];
  }

  function figure(picture, regions, label, uri, more, none = "") {
    const made = element("figure");
    if (picture === null) {
      const gone = element("div", "frame gone");
      gone.append(element("p", "", uri ? "This photo cannot be read." : none));
      made.append(gone);
    } else {
      const frame = element("div", "frame");
      const image = element("img");
      Object.assign(image, { src: picture.uri, width: picture.width, height: picture.height, alt: `${label}: ${uri}` });
      frame.append(image);
      if (regions.length) frame.append(overlay(picture, regions));
      made.append(frame);
    }
    const caption = element("figcaption");
    const name = element("bdi", "", uri || "");
    caption.append(element("b", "", label), " ", name, ...(more ? [element("br"), more] : []));
    made.append(caption);
    return made;
  }

  function overlay(picture, regions) {
    const svg = (tag, attributes, text) => {
      const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
      if (text !== undefined) made.textContent = text;
      return made;
    };
    const width = picture.width / data.grid_side, height = picture.height / data.grid_side;
    const drawn = svg("svg", { class: "regions", viewBox: `0 0 ${picture.width} ${picture.height}`, "aria-hidden": "true" });
    drawn.append(...regions.map(({ x, y, colour }) => svg("rect", { x, y, width, height, fill: colour })));
    for (const { x, y, label } of regions.filter((region) => region.label)) {
      const badge = svg("g", { transform: `translate(${x + width / 2} ${y + height / 2})` });
      badge.append(svg("circle", { r: 10 }), svg("text", {}, label));
      drawn.append(badge);
    }
    return drawn;
  }

  // A position of one's own

  function startCorrecting() {
    correcting = true;
    $("position").hidden = false;
    const at = place(current);
    $("typed").value = at ? degrees(at) : "";
    hint("Type it, click on the map, or take another place above.");
    $("typed").focus();
    $("typed").select();
  }

  function stopCorrecting() {
    correcting = false;
    $("position").hidden = true;
  }

  function hint(text, wrong = false) {
    $("how").textContent = text;
    $("how").className = wrong ? "wrong-input" : "quiet";
    $("typed").setAttribute("aria-invalid", String(wrong));
  }

  function useTyped() {
    const numbers = /^\s*(-?\d+(?:\.\d+)?)\s*[,;\s]\s*(-?\d+(?:\.\d+)?)\s*$/.exec($("typed").value);
    if (numbers === null) {
      hint("Two numbers in degrees are needed, latitude first, as 52.37403, 4.88969", true);
      return;
    }
    const lat = Number(numbers[1]), lon = Number(numbers[2]);
    const wrong = problem(lat, lon);
    if (wrong) {
      hint(`This cannot be a position: ${wrong}.`, true);
      return;
    }
    decide("correct", [lat, lon]);
    $("correct").focus({ preventScroll: true });
  }

  // The map; Bokeh draws, and calls back for a click

  let plot = null;
  let fitted = null;
  const source = (name) => plot.document.get_model_by_name(name);

  function drawPhotos() {
    if (plot === null) return;
    const columns = Object.fromEntries(Object.keys(MARKS).map((kind) => [kind, { x: [], y: [], uri: [] }]));
    for (const row of shown) {
      const at = place(row);
      if (at === null) continue;
      const [x, y] = project(at);
      const { x: xs, y: ys, uri } = columns[kindNow(row)];
      xs.push(x);
      ys.push(y);
      uri.push(row.uri);
    }
    for (const [kind, column] of Object.entries(columns)) source(kind).data = column;
  }

  function drawPlaces(row, picked = null) {
    const said = decided.get(row.id);
    const own = picked ?? (said?.decision === "correct" ? [said.lat, said.lon] : null);
    const labelled = [];
    if (found(row)) labelled.push(["?", found(row)]);
    for (const [at, other] of (data.evidence[row.id]?.alternatives ?? []).entries()) labelled.push([String(at + 1), [other.lat, other.lon]]);
    if (row.known_lat !== null) labelled.push(["i", [row.known_lat, row.known_lon]]);
    if (own) labelled.push(["★", own]);
    if (plot !== null) {
      const at = labelled.map(([, position]) => project(position));
      source("places").data = { x: at.map(([x]) => x), y: at.map(([, y]) => y), label: labelled.map(([label]) => label) };
    }
    return labelled.map(([, position]) => position);
  }

  function fit(places, least_m) {
    if (plot === null || !places.length) return;
    fitted = [places, least_m];
    let [west, south, east, north] = [Infinity, Infinity, -Infinity, -Infinity];
    for (const [x, y] of places.map(project)) {
      west = Math.min(west, x);
      east = Math.max(east, x);
      south = Math.min(south, y);
      north = Math.max(north, y);
    }
    const aspect = (plot.inner_width || 1) / (plot.inner_height || 1);
    const high = 1.3 * Math.max(north - south, (east - west) / aspect, least_m);
    plot.x_range.setv({ start: (west + east - high * aspect) / 2, end: (west + east + high * aspect) / 2 });
    plot.y_range.setv({ start: (south + north - high) / 2, end: (south + north + high) / 2 });
  }

  const whole = () => fit([...shown.map(place).filter(Boolean), ...data.coverage], 200);

  function clicked(x, y) {
    if (correcting) {
      const picked = unproject(x, y);
      $("typed").value = degrees(picked);
      drawPlaces(current, picked);
      hint("From the map. Click again to move it.");
      $("use").focus({ preventScroll: true }); // not the field: a phone would open its keyboard
      return;
    }
    const pixel = (plot.x_range.end - plot.x_range.start) / plot.inner_width;
    let nearest = null, least = 14 * pixel;
    for (const row of shown) {
      const at = place(row);
      if (at === null) continue;
      const [east, north] = project(at);
      const distance = Math.hypot(east - x, north - y);
      if (distance < least) [nearest, least] = [row, distance];
    }
    if (nearest) show(nearest);
  }

  function startMap() {
    plot = globalThis.Bokeh?.documents?.[0]?.get_model_by_name("review-map") ?? null;
    if (plot === null || !plot.inner_width) {
      plot = null;
      setTimeout(startMap, 50);
      return;
    }
    const dots = data.coverage.map(project);
    source("coverage").data = { x: dots.map(([x]) => x), y: dots.map(([, y]) => y) };
    plot.js_event_callbacks = new Map([["tap", [(event) => clicked(event.x, event.y)]]]);
    addEventListener("resize", () => setTimeout(() => fitted && fit(...fitted), 200));
    drawPhotos();
    if (current) drawPlaces(current);
    whole();
  }

  // Start

  for (const id of Object.keys(actions)) $(id).addEventListener("click", () => current && actions[id]());
  for (const box of document.querySelectorAll("[name=kind]")) box.addEventListener("change", filter);
  for (const id of ["folder", "order"]) $(id).addEventListener("change", filter);
  $("earlier").addEventListener("click", () => fillList(Number($("list").dataset.start) - PAGE));
  $("later").addEventListener("click", () => fillList(Number($("list").dataset.start) + PAGE));
  $("save").addEventListener("click", save);
  $("load").addEventListener("change", (event) => event.target.files[0] && load(event.target.files[0]).then(() => { event.target.value = ""; }));
  $("list").addEventListener("keydown", (event) => {
    if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
    event.preventDefault();
    step(event.key === "ArrowDown" ? 1 : -1);
    $("list").querySelector("[aria-current]")?.focus();
  });
  $("whole").addEventListener("click", whole);
  $("cancel").addEventListener("click", () => { stopCorrecting(); drawPlaces(current); $("correct").focus({ preventScroll: true }); });
  $("position").addEventListener("submit", (event) => { event.preventDefault(); useTyped(); });
  $("note").addEventListener("change", () => {
    const said = decided.get(current.id);
    if (said === undefined) return;
    Object.assign(said, { note: $("note").value.trim(), saved: false });
    keep();
    refresh();
  });
  const KEYS = { a: "accept", c: "correct", r: "refuse", u: "undo", j: "next", k: "previous" };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && correcting) $("cancel").click();
    const typing = event.target.matches("input[type=text], select, textarea");
    if (typing || event.ctrlKey || event.metaKey || event.altKey || !$("keys").checked || !KEYS[event.key] || !current) return;
    event.preventDefault();
    actions[KEYS[event.key]]();
  });

  const folders = new Set();
  for (const row of rows) for (let folder = folderOf(row.uri); folder && !folders.has(folder); folder = folderOf(folder)) folders.add(folder);
  $("folder").append(new Option("all folders", ""), ...[...folders].sort().map((folder) => new Option(folder, folder)));
  recall();
  filter();
  if (shown.length) show(shown[0]);
  refresh();
  startMap();
})();
