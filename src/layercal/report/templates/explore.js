// Picks and draws; every number was computed before. Texts are set as text, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const MOST = 100; // questions listed at once
const views = {}; // promises of Vega views
let cell = null; // of the flow chart: {from, to}
let opened = null; // id of the question shown

const at = (id) => document.getElementById(id);
const say = (id, text) => { at(id).textContent = text; };
const three = (value) => (value === null ? "–" : value.toFixed(3));
const interval = ([, low, high]) => (low === null ? "–" : `${three(low)} to ${three(high)}`);

function element(tag, text, name = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = name;
  return made;
}

function fill(id, labels, disabled = []) {
  const old = at(id).selectedIndex;
  at(id).replaceChildren(...labels.map((label, index) => {
    const option = element("option", label);
    option.disabled = Boolean(disabled[index]);
    return option;
  }));
  at(id).selectedIndex = old >= 0 && old < labels.length && !disabled[old] ? old : 0;
}

// ---- what is picked

const pair = () => data.pairs[at("pair").selectedIndex];
const group = () => pair().groups[at("group").selectedIndex];
const reading = () => pair().readings[at("reading").selectedIndex];
const block = () => reading().groups[group().name];
const steered = () => at("reading").selectedIndex > 0;
const reference = () => at("reference").selectedIndex;
const layer = () => reading().layers[at("layer").valueAsNumber];

function step(place = at("layer").valueAsNumber) {
  const { layers, alphas } = reading();
  const direction = at("direction").selectedIndex;
  return (direction * layers.length + place) * alphas.length + at("alpha").valueAsNumber;
}

function choosePair() {
  fill("group", pair().groups.map((one) => `${one.label} (n = ${one.n})${one.measured ? "" : ": too few"}`),
       pair().groups.map((one) => !one.measured));
  fill("reading", pair().readings.map((one) => one.label));
  say("reason", pair().reason);
  const { ids, asked } = pair();
  say("thinned", `Answers through the logit lens.${ids.length < asked ? ` To keep this page small, ${ids.length} of the
    ${asked} questions are here, drawn by a stable hash; everything above is measured on all of them.` : ""}`);
  opened = ids[0];
  chooseReading(pair().readings[0].layers.at(-1));
}

function chooseReading(wanted) {
  const { layers, alphas, directions, references } = reading();
  const slider = at("layer");
  slider.max = layers.length - 1;
  slider.value = layers.includes(wanted) ? layers.indexOf(wanted) : layers.length - 1;
  at("alpha").max = alphas.length - 1;
  at("alpha").value = steered() ? alphas.indexOf(1) : 0;
  fill("direction", directions);
  fill("reference", references);
  for (const id of ["steering", "scale"]) at(id).hidden = !steered();
  at("flow-click").hidden = steered();
  cell = null;
  shown = layer();
  draw();
}

let shown; // layer to stay at when the reading changes

// ---- drawing

function draw() {
  shown = layer();
  drawNumbers();
  drawCurves();
  drawBins();
  drawFlow();
  listQuestions();
}

// the first time with the data in the specification: Vega warns of scales over nothing
function update(name, sets) {
  if (!views[name]) {
    const spec = { ...data.specs[name], datasets: { ...data.specs[name].datasets, ...sets } };
    views[name] = vegaEmbed(at(name), spec, { renderer: "svg", actions: false }).then((made) => made.view);
    return;
  }
  views[name].then((view) => {
    for (const [set, rows] of Object.entries(sets)) view.data(set, rows);
    view.runAsync();
  });
}

function drawNumbers() {
  const alpha = reading().alphas[at("alpha").valueAsNumber];
  const now = `${layer()} of ${pair().readings[0].layers.at(-1)}`;
  say("layer-shown", now);
  at("layer").setAttribute("aria-valuetext", now);
  say("alpha-shown", alpha);
  at("alpha").setAttribute("aria-valuetext", alpha);
  const read = steered() ? `${reading().label}, scale ${alpha}` : reading().label;
  say("numbers-caption", `Layer ${layer()}, ${read}: n = ${group().n}, ${pair().n_bins} bins`);
  for (const [metric, rows] of Object.entries(block().numbers)) {
    say(metric, three(rows[step()][0]));
    say(`${metric}-interval`, interval(rows[step()]));
  }
  say("ece-floor", three(block().numbers.ece[step()][3]));
}

function drawCurves() {
  const kinds = { accuracy: "accuracy", confidence: "mean confidence", ece: "ECE" };
  const series = Object.entries(kinds).flatMap(([metric, kind]) =>
    reading().layers.map((one, place) => {
      const [value, low, high] = block().numbers[metric][step(place)];
      return { kind, layer: one, value, low, high };
    }));
  const floor = reading().layers.map((one, place) =>
    ({ kind: "null floor of ECE", layer: one, high: block().numbers.ece[step(place)][3] }));
  update("curves", { series, floor, now: [{ layer: layer() }] });
  say("curves-text", `Over the layers; the dashed line stands at layer ${layer()}. Bands: 95 % intervals.`);
}

function drawBins() {
  const { count, confidence, accuracy } = block().bins;
  const width = 1 / pair().n_bins;
  const bins = count[step()].map((held, index) => ({
    count: held,
    low: index * width,
    high: (index + 1) * width,
    middle: (index + 0.5) * width,
    range: `${(index * width).toFixed(2)} to ${((index + 1) * width).toFixed(2)}`,
    confidence: confidence[step()][index],
    accuracy: accuracy[step()][index],
    top: Math.max(confidence[step()][index], accuracy[step()][index]),
  })).filter((bin) => bin.count);
  const mean = (metric) => block().numbers[metric][step()][0];
  const gap = mean("confidence") - mean("accuracy");
  update("reliability", { bins });
  update("histogram", { bins, means: [
    { kind: "mean confidence", value: mean("confidence") }, { kind: "accuracy", value: mean("accuracy") }] });
  say("reliability-text", `Bars: accuracy of each confidence bin, its number of questions above. On the dashed
    diagonal accuracy equals confidence. ECE ${three(mean("ece"))}.`);
  say("histogram-text", `Mean confidence lies ${three(Math.abs(gap))} ${gap < 0 ? "below" : "above"} accuracy:
    the model is ${gap < 0 ? "under" : "over"}confident on average.`);
}

function drawFlow() {
  const letters = [...pair().letters];
  const counts = block().flow[reference()][step()];
  const most = Math.max(1, ...counts.filter((_, index) => index % (letters.length + 1)));
  update("flow", { flow: counts.map((count, index) => ({
    from: letters[Math.floor(index / letters.length)], to: letters[index % letters.length],
    count, share: count / most,
  })) });
  const found = block().moves[reference()][step()];
  say("moves-caption", `Layer ${layer()} against ${reading().references[reference()]}: questions whose answer`);
  at("moves").replaceChildren(...data.moves.map((label, index) => {
    const row = element("tr", "");
    const head = element("th", label);
    head.scope = "row";
    row.append(head, element("td", found[index]));
    return row;
  }));
}

// ---- questions: always through the logit lens

function answers(index) {
  const path = pair().chosen[index];
  const before = reference() === 1 ? pair().peak : Math.max(layer() - 1, 0);
  const text = data.texts[pair().questions][pair().ids[index]];
  const right = pair().letters[text.answer];
  return { from: path[before], to: path[layer()], right, text };
}

const SHOWN = {
  "all": () => true,
  "whose answer changed": ({ from, to }) => from !== to,
  "whose answer became right": ({ from, to, right }) => from !== right && to === right,
  "whose answer became wrong": ({ from, to, right }) => from === right && to !== right,
  "that are answered right here": ({ to, right }) => to === right,
  "that are answered wrong here": ({ to, right }) => to !== right,
};

function matches(index, words) {
  const found = answers(index);
  if (cell && (found.from !== cell.from || found.to !== cell.to)) return false;
  if (!Object.values(SHOWN)[at("show").selectedIndex](found)) return false;
  const { subject, category, question, choices } = found.text;
  const all = [subject, category, question, ...choices].join(" ").toLowerCase();
  return words.every((word) => all.includes(word));
}

function listQuestions() {
  const words = at("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = [...pair().ids.keys()].filter((index) => matches(index, words));
  say("found", found.length > MOST ? `${found.length} questions; the first ${MOST} are listed`
    : `${found.length} question${found.length === 1 ? "" : "s"}`);
  at("clear").hidden = !cell;
  if (cell) say("clear", `only ${cell.from} to ${cell.to}: show all`);
  const names = found.slice(0, MOST).map((index) => pair().ids[index]);
  if (names.length && !names.includes(opened)) opened = names[0];
  at("questions").replaceChildren(...found.slice(0, MOST).map(listed));
  drawQuestion();
}

function listed(index) {
  const { from, to, right, text } = answers(index);
  const path = from === to ? to : `${from} → ${to}`;
  const button = element("button", "");
  button.type = "button";
  button.setAttribute("aria-pressed", pair().ids[index] === opened);
  button.append(element("span", `${path} ${to === right ? "✓ right" : "✗ wrong"}`, "chosen"), ` ${short(text.question)}`);
  button.addEventListener("click", () => { opened = pair().ids[index]; press(button); drawQuestion(); });
  const item = element("li", "");
  item.append(button);
  return item;
}

const short = (text) => (text.length > 140 ? `${text.slice(0, 140)}…` : text);

function press(button) {
  for (const one of at("questions").querySelectorAll("button")) one.setAttribute("aria-pressed", one === button);
}

function drawQuestion() {
  const index = pair().ids.indexOf(opened);
  const { text, to, right } = answers(index);
  const probability = pair().probability[index];
  const letters = [...pair().letters].slice(0, text.choices.length);
  say("subject", [text.category, text.subject.replaceAll("_", " ")].filter(Boolean).join(" · "));
  say("text", text.question);
  at("choices").replaceChildren(...text.choices.map((choice, option) => {
    const marked = `${letters[option]}. ${choice}${letters[option] === right ? " ✓ right answer" : ""}`;
    return element("li", marked, letters[option] === right ? "right" : "");
  }));
  update("trajectory", {
    trajectory: letters.flatMap((letter, option) => probability.map((row, one) => ({
      layer: one, option: letter, right: letter === right,
      probability: row[option] / 1000,
    }))),
    now: [{ layer: layer() }],
  });
  const p = (letter) => three(probability[layer()][letters.indexOf(letter)] / 1000);
  say("trajectory-text", `Probability of each option over the layers; the thick line is the right answer, ${right}.
    At layer ${layer()} the model answers ${to} with ${p(to)}${to === right ? ", which is right" : `; ${right} gets ${p(right)}`}.`);
}

// ---- start

async function start() {
  fill("pair", data.pairs.map((one) => `${one.model} on ${one.questions}`));
  fill("show", Object.keys(SHOWN));
  at("pair").addEventListener("change", choosePair);
  at("reading").addEventListener("change", () => chooseReading(shown));
  for (const id of ["group", "direction", "reference", "layer", "alpha"]) at(id).addEventListener("input", draw);
  for (const id of ["search", "show"]) at(id).addEventListener("input", listQuestions);
  at("clear").addEventListener("click", () => { cell = null; listQuestions(); });
  choosePair();
  (await views.flow).addEventListener("click", (_, item) => {
    if (steered() || !item?.datum?.from) return;
    cell = { from: item.datum.from, to: item.datum.to };
    listQuestions();
    at("questions-title").scrollIntoView();
  });
  await Promise.all(Object.values(views));
  document.body.dataset.ready = Math.round(performance.now());
}

start();
