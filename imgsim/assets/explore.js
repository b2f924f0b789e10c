// Explore locality-sensitive hashing: a map of images, planes, cells, probes, and what they find.
// One module for two homes: the page that `imgsim explore` writes, and the notebooks' widget (anywidget). What it
// computes is what Python computes; a test compares codes, candidates and shares.

const INK = "#1f2933", RIGHT = "#2a7d4f", WRONG = "#b5442e", PROBE = "#d98e04", BLUE = "#2f6690";
const NEAREST = 10, MOST_QUERIES = 128;

// ---- The mathematics. A point is an array of numbers; a table's planes are normals, one array per bit.

/** Return a generator of standard normal numbers: mulberry32, and Box and Muller's transform. */
export function normalNumbers(seed) {
  let state = (seed * 0x9e3779b1) >>> 0;
  const uniform = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}

const dot = (a, b, length = b.length) => {
  let sum = 0;
  for (let i = 0; i < length; i++) sum += a[i] * b[i];
  return sum;
};

/** Draw planes: per table, per bit a normal of `dims` numbers. Principal ones are a random rotation per table of the
 *  leading directions, which are the first axes here; see imgsim/search/principal.py. */
export function drawPlanes({ bits, tables, principal, dims, seed }) {
  const next = normalNumbers(seed), used = Math.min(bits, dims);
  const normal = (length) => Float32Array.from({ length: dims }, (_, i) => (i < length ? next() : 0));
  return Array.from({ length: tables }, () => {
    const normals = [];
    while (normals.length < bits) {
      const one = normal(principal ? used : dims);
      if (principal) {
        const turn = normals.slice(normals.length - (normals.length % used)); // the rotation begun
        for (const other of turn) {
          const share = dot(one, other);
          one.forEach((_, i) => (one[i] -= share * other[i]));
        }
        const length = Math.sqrt(dot(one, one));
        if (length < 1e-3) continue;
        one.forEach((_, i) => (one[i] /= length));
      }
      normals.push(one);
    }
    return normals;
  });
}

/** Return on which side of each plane a point lies, and how far from it. */
const marginsOf = (point, centre, normals) => normals.map((normal) => dot(normal, point) - dot(normal, centre));

/** Return the codes of the buckets nearest to a query, its own first; see imgsim/search/probing.py. */
export function nearestBuckets(margins, room) {
  let list = [{ far: 0, code: margins.reduce((code, margin, bit) => code + (margin > 0 ? 2 ** bit : 0), 0) }];
  const order = margins.map((margin, bit) => [margin * margin, bit]).sort((a, b) => a[0] - b[0]);
  for (const [step, bit] of order) {
    if (list.length === room && list[room - 1].far <= step) break;
    const flipped = list.map(({ far, code }) => ({ far: far + step, code: code ^ (1 << bit) }));
    list = [...list, ...flipped].sort((a, b) => a.far - b.far).slice(0, room);
  }
  return list.map(({ code }) => code);
}

/** Hash tables over points: what a query sees in them. */
export class Tables {
  constructor(points, centre, settings) {
    Object.assign(this, { points, centre, settings, planes: drawPlanes(settings) });
    this.buckets = this.planes.map((normals) => {
      const buckets = new Map();
      points.forEach((point, row) => {
        const [code] = nearestBuckets(marginsOf(point, centre, normals), 1);
        buckets.has(code) ? buckets.get(code).push(row) : buckets.set(code, [row]);
      });
      return buckets;
    });
  }

  /** Return the codes looked up in each table, the query's own first. */
  codes(query, probes) {
    return this.planes.map((normals) => nearestBuckets(marginsOf(query, this.centre, normals), 1 + probes));
  }

  /** Return 1 for each row in one of the buckets looked up; `self` is the query's own row, or -1. */
  seen(query, probes, self = -1) {
    const seen = new Uint8Array(this.points.length);
    this.codes(query, probes).forEach((codes, table) => {
      for (const code of codes) for (const row of this.buckets[table].get(code) ?? []) seen[row] = 1;
    });
    if (self >= 0) seen[self] = 0;
    return seen;
  }
}

/** Return the rows of the points nearest to a query, nearest first. */
export function nearestRows(points, query, self = -1, count = NEAREST) {
  const far = points.map((point) => query.reduce((sum, value, i) => sum + (value - point[i]) ** 2, 0));
  const rows = far.map((_, row) => row).filter((row) => row !== self);
  return rows.sort((one, other) => far[one] - far[other]).slice(0, count);
}

/** Return the shares of the nearest that were found, and of `count` images that were seen. */
export const sharesOf = (seen, nearest, count) => ({
  found: nearest.filter((row) => seen[row]).length / nearest.length,
  seen: seen.reduce((sum, one) => sum + one, 0) / count,
});

/** Return the probability that two points at an angle share a bucket: the S-curve. */
export const curve = (angle, { bits, tables }) => 1 - (1 - (1 - angle / Math.PI) ** bits) ** tables;

/** Unpack the data that Python wrote: points of all dimensions kept, and the origin. */
export function unpack(data) {
  const bytes = Uint8Array.from(atob(data.vectors), (letter) => letter.charCodeAt(0));
  const flat = new Float32Array(bytes.buffer), dims = data.origin.length;
  const points = Array.from({ length: flat.length / dims }, (_, row) => flat.subarray(row * dims, (row + 1) * dims));
  return { points, origin: Float32Array.from(data.origin) };
}

/** All that is known of an image set with so many dimensions: averages are over some of the images, each left out. */
export class Space {
  constructor({ points, origin }, dims) {
    this.dims = dims;
    this.points = points.map((point) => point.subarray(0, dims));
    this.origin = origin.subarray(0, dims);
    const step = Math.ceil(points.length / MOST_QUERIES);
    this.queries = [...this.points.keys()].filter((row) => row % step === 0);
    this.nearest = this.queries.map((row) => nearestRows(this.points, this.points[row], row));
  }

  tables(settings) {
    const centre = settings.centred ? this.origin.map(() => 0) : this.origin;
    return new Tables(this.points, centre, { ...settings, dims: this.dims });
  }

  averages(tables, probes) {
    let found = 0, seen = 0;
    this.queries.forEach((row, i) => {
      const shares = sharesOf(tables.seen(this.points[row], probes, row), this.nearest[i], this.points.length - 1);
      found += shares.found / this.queries.length;
      seen += shares.seen / this.queries.length;
    });
    return { found, seen };
  }

  /** Return histograms over 0 to 180 degrees of the angles to the nearest and to all, seen from a centre, as shares. */
  histograms(centre, bins = 36) {
    if (this.angles?.centre.join() === centre.join()) return this.angles;
    const centred = this.points.map((point) => point.map((value, i) => value - centre[i]));
    const lengths = centred.map((point) => Math.sqrt(dot(point, point)) || 1);
    const histogram = (others) => {
      const shares = new Float64Array(bins);
      this.queries.forEach((row, i) => others(row, i).forEach((other, _, { length }) => {
        const cosine = dot(centred[row], centred[other]) / lengths[row] / lengths[other];
        const place = (Math.acos(Math.max(-1, Math.min(1, cosine))) / Math.PI) * bins;
        shares[Math.min(bins - 1, Math.floor(place))] += 1 / length / this.queries.length;
      }));
      return shares;
    };
    const rows = [...this.points.keys()];
    const all = histogram((row) => rows.filter((other) => other !== row));
    return (this.angles = { centre, near: histogram((_, i) => this.nearest[i]), all });
  }
}

/** Cut a convex polygon by the half-plane a x + b y + c > 0, or its other side. */
export function cut(polygon, [a, b, c], side) {
  const value = ([x, y]) => (a * x + b * y + c) * side;
  return polygon.flatMap((point, i) => {
    const before = polygon[(i + polygon.length - 1) % polygon.length], [v, w] = [value(before), value(point)];
    const t = v / (v - w), crossing = [before[0] + t * (point[0] - before[0]), before[1] + t * (point[1] - before[1])];
    return [...(v > 0 !== w > 0 ? [crossing] : []), ...(w > 0 ? [point] : [])];
  });
}

// ---- The page.

/** Make an element with properties and children; text stays text. */
function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    key.includes("-") || key === "role" ? element.setAttribute(key, value) : (element[key] = value);
  }
  element.append(...children);
  return element;
}

const div = (className, ...children) => make("div", { className }, ...children);
const circle = (context, [x, y], radius) => (context.beginPath(), context.arc(x, y, radius, 0, 7));
const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.0995 ? 1 : 0)}%`;
const STEPS = [
  {
    text:
      "Lose a neighbour. Drag the star until a plane comes between it and one of its ten nearest. Which one is lost? " +
      "Click it in the row below the map.",
    settings: { dims: 2, bits: 3, tables: 1, probes: 0, principal: false, centred: true },
    clicked: (app, row) => app.nearest.includes(row) && !app.seen[row],
    right: "Right: a plane lies between the two, so their codes differ. A small cell is a fast look-up and a risk.",
    wrong: "That one was found. Look for a dashed red ring; if there is none, drag the star towards a line.",
  },
  {
    text:
      "Find it again. Keep at least three bits, and let every one of the ten nearest be found while no more than 70% " +
      "of the images are seen. Try more tables, then probes instead.",
    settings: { dims: 2, bits: 3, tables: 1, probes: 0, principal: false, centred: true },
    moved: (app) => app.settings.bits >= 3 && app.shares.found === 1 && app.shares.seen <= 0.7,
    right: "Right: other planes cut elsewhere, and a probe looks across the nearest plane. Both cost images seen.",
  },
  {
    text: "Pay less. In many dimensions, find 90% on average and see at most 25%. Which kind of plane gets there?",
    settings: { dims: 0, bits: 8, tables: 4, probes: 0, principal: false, centred: true },
    moved: (app) => app.average.found >= 0.9 && app.average.seen <= 0.25,
    right: "Right: planes within the principal directions cut where the cloud is wide, so that fewer images are seen.",
  },
];

class App {
  constructor(root, data) {
    Object.assign(this, { root, data, unpacked: unpack(data), spaces: new Map(), trail: [], step: -1 });
    this.most = data.origin.length;
    this.settings = { dims: 2, bits: 3, tables: 1, probes: 0, principal: false, centred: true, seed: 1 };
    this.sprite = new Image();
    this.sprite.src = data.sprite;
    this.sprite.onload = () => this.paint();
    this.build();
    this.pick(0);
    this.change({});
    for (const row of this.space.queries) if (this.shares.found === 1) this.pick(row); // to one that loses a neighbour
    this.watch = new ResizeObserver(() => this.paint());
    this.watch.observe(this.map);
  }

  build() {
    this.map = make("canvas", { className: "map", tabIndex: 0, role: "application" });
    this.chart = make("canvas", { className: "chart", role: "img" });
    this.angles = make("canvas", { className: "chart", role: "img" });
    this.said = make("p", { className: "said", role: "status" });
    this.row = make("div", { className: "row", role: "group", "aria-label": "The ten nearest images" });
    this.inputs = {};
    const slider = (name, label, min, max) => {
      const value = make("output"), input = make("input", { type: "range", min, max, step: 1, name });
      input.oninput = () => this.change({ [name]: Number(input.value) });
      this.inputs[name] = (to) => (input.value = value.value = to);
      return make("label", {}, make("span", {}, label, " ", value), input);
    };
    const choice = (name, label, options) => {
      const select = make("select", { name }, ...options.map(([text], i) => make("option", { value: i }, text)));
      select.onchange = () => this.change({ [name]: options[select.value][1] });
      this.inputs[name] = (to) => (select.value = options.findIndex(([, value]) => value === to));
      return make("label", {}, make("span", {}, label), select);
    };
    const button = (text, work) => make("button", { type: "button", onclick: work }, text);
    const controls = make("fieldset", { className: "controls" }, make("legend", {}, "Settings"),
      slider("bits", "bits", 1, 16), slider("tables", "tables", 1, 12), slider("probes", "probes per table", 0, 16),
      choice("principal", "planes", [["random", false], ["principal", true]]),
      choice("centred", "planes through", [["the mean", true], ["the origin", false]]),
      choice("dims", "dimensions", [["2, this map", 2], [`${this.most}`, this.most]]),
      div("buttons",
        button("Other planes", () => this.change({ seed: this.settings.seed + 1 })),
        button("Another query", () => this.pick((this.self + 37) % this.points.length))));
    this.task = make("p", { className: "task" }, "Three small tasks, from a lost neighbour to planes that pay.");
    this.verdict = make("p", { className: "verdict", role: "status" });
    this.steps = STEPS.map((_, i) => button(`Task ${i + 1}`, () => this.startStep(i)));
    const tasks = div("tasks", div("buttons", ...this.steps), this.task, this.verdict);
    const left = div("left", this.map, this.row, this.said);
    const right = div("right", controls, tasks, this.chart, this.angles);
    this.root.replaceChildren(div("explore", left, right, make("p", { className: "note" }, this.data.note)));
    this.listen();
  }

  // ---- State

  get points() { return this.space.points; }

  get space() {
    const { dims } = this.settings;
    if (!this.spaces.has(dims)) this.spaces.set(dims, new Space(this.unpacked, dims));
    return this.spaces.get(dims);
  }

  /** Take other settings, and measure them. */
  change(settings) {
    if (this.average) this.trail.push(this.average);
    Object.assign(this.settings, settings);
    this.settings.dims ||= this.most;
    for (const [name, set] of Object.entries(this.inputs)) set(this.settings[name]);
    this.tables = this.space.tables(this.settings);
    this.average = this.space.averages(this.tables, this.settings.probes);
    // In other dimensions the query is another point: that of its image, or of the image nearest on the map.
    if (this.query.length !== this.settings.dims) this.pick(this.self >= 0 ? this.self : this.closest(this.query));
    else this.ask();
  }

  /** Make an image the query. */
  pick(row) {
    this.self = row;
    this.query = this.points[row];
    if (this.tables) this.ask();
  }

  /** Move the query to a place on the map; in more dimensions a place is no point, so to the nearest image. */
  moveTo(x, y) {
    if (this.settings.dims > 2) return this.pick(this.closest([x, y]));
    this.self = -1;
    this.query = Float32Array.of(x, y);
    this.ask();
  }

  closest(place) {
    return nearestRows(this.points.map((point) => point.subarray(0, 2)), place, -1, 1)[0];
  }

  /** Search for the query. */
  ask() {
    const { tables, query, self, points } = this;
    this.seen = tables.seen(query, this.settings.probes, self);
    this.nearest = nearestRows(points, query, self);
    this.shares = sharesOf(this.seen, this.nearest, points.length - (self >= 0));
    const { length } = this.nearest, number = Math.round(this.shares.found * length);
    this.said.textContent =
      `This query: ${number} of its ${length} nearest found, ${percent(this.shares.seen)} of the images seen. ` +
      `On average: ${percent(this.average.found)} found, ${percent(this.average.seen)} seen.`;
    this.map.setAttribute("aria-label", `${points.length} images. ${this.said.textContent} Arrow keys move the query.`);
    if (STEPS[this.step]?.moved?.(this)) this.judge(true);
    this.paint();
  }

  startStep(number) {
    this.step = number;
    this.steps.forEach((button, i) => button.setAttribute("aria-pressed", i === number));
    this.task.textContent = STEPS[number].text;
    this.verdict.textContent = "";
    this.change(STEPS[number].settings);
  }

  judge(right) {
    this.verdict.className = `verdict ${right ? "right-answer" : "wrong-answer"}`;
    this.verdict.textContent = right ? `✓ ${STEPS[this.step].right}` : `✗ ${STEPS[this.step].wrong}`;
  }

  // ---- Input

  listen() {
    const place = (event) => {
      const box = this.map.getBoundingClientRect();
      return this.toWorld(event.clientX - box.left, event.clientY - box.top);
    };
    this.map.onpointerdown = (event) => {
      this.map.setPointerCapture(event.pointerId);
      this.dragging = true;
      this.moveTo(...place(event));
    };
    this.map.onpointermove = (event) => this.dragging && this.moveTo(...place(event));
    this.map.onpointerup = this.map.onpointercancel = () => (this.dragging = false);
    this.map.onkeydown = (event) => {
      const [x, y] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key] ?? [];
      if (x === undefined) return;
      event.preventDefault();
      const [from, far] = [this.query, this.view().world / 60];
      if (this.settings.dims === 2) return this.moveTo(from[0] + x * far, from[1] + y * far);
      const offset = (row) => [0, 1].map((axis) => this.points[row][axis] - from[axis]);
      const apart = (row) => Math.hypot(...offset(row)), ahead = (row) => dot(offset(row), [x, y]);
      const others = [...this.points.keys()].filter((row) => ahead(row) > 0.3 * apart(row));
      if (others.length) this.pick(others.reduce((best, row) => (apart(row) < apart(best) ? row : best)));
    };
  }

  // ---- Drawing

  /** Fit a canvas to its size on the screen, and return its context and size in CSS pixels. */
  canvas(element, width = element.clientWidth, height = element.clientHeight) {
    const ratio = devicePixelRatio || 1, [across, down] = [width, height].map((side) => Math.round(side * ratio));
    if (element.width !== across || element.height !== down) Object.assign(element, { width: across, height: down });
    const context = element.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = "12px system-ui, sans-serif";
    return [context, width, height];
  }

  view() {
    const { clientWidth: width, clientHeight: height } = this.map;
    this.reach ??= [0, 1].map((axis) => Math.max(1e-6, ...this.points.map((point) => Math.abs(point[axis]))));
    const scale = 0.46 * Math.min(width / this.reach[0], height / this.reach[1]);
    return { width, height, scale, world: Math.min(width, height) / scale };
  }

  toWorld(left, top) {
    const { width, height, scale } = this.view();
    return [(left - width / 2) / scale, (height / 2 - top) / scale];
  }

  paint() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.paintMap();
      this.paintChart();
      this.paintAngles();
      this.paintRow();
    });
  }

  paintMap() {
    const [context, width, height] = this.canvas(this.map), { scale } = this.view();
    const at = ([x, y]) => [width / 2 + x * scale, height / 2 - y * scale];
    const { tables, query } = this;
    // A plane cuts the map in a line a x + b y + c = 0: c takes the query's place in all other dimensions.
    const lineOf = (normal) => [normal[0], normal[1],
      dot(normal, query) - normal[0] * query[0] - normal[1] * query[1] - dot(normal, tables.centre)];
    const corners = [[0, 0], [width, 0], [width, height], [0, height]].map(([x, y]) => this.toWorld(x, y));
    // The cells looked up, as the map cuts them at the query's depth: probed ones first, the query's own above.
    const codes = tables.codes(query, this.settings.probes);
    for (const [own, colour] of [[false, PROBE], [true, RIGHT]]) {
      context.fillStyle = colour;
      context.globalAlpha = Math.max(0.05, 0.22 / tables.planes.length);
      codes.forEach((list, t) => (own ? list.slice(0, 1) : list.slice(1)).forEach((code) => {
        const cell = tables.planes[t].reduce((polygon, normal, bit) =>
          cut(polygon, lineOf(normal), (code >> bit) & 1 ? 1 : -1), corners);
        context.beginPath();
        cell.forEach((corner, i) => context[i ? "lineTo" : "moveTo"](...at(corner)));
        context.fill();
      }));
    }
    context.globalAlpha = 1;
    // All images, faint, painted once for a size; those seen above them, in full.
    const side = Math.max(12, Math.min(width, height) / 26), size = `${width} ${height} ${this.sprite.naturalWidth}`;
    if (this.faint?.size !== size) {
      this.faint = Object.assign(document.createElement("canvas"), { size });
      const behind = this.canvas(this.faint, width, height)[0];
      behind.globalAlpha = 0.28;
      this.points.forEach((point, row) => this.paintImage(behind, row, at(point), side * 0.55));
    }
    context.drawImage(this.faint, 0, 0, width, height);
    this.points.forEach((point, row) => this.seen[row] && this.paintImage(context, row, at(point), side * 0.8));
    context.globalAlpha = Math.max(0.25, 1 / tables.planes.length);
    tables.planes.forEach((normals, t) => {
      context.strokeStyle = t ? BLUE : INK;
      context.setLineDash(t ? [6, 3] : []);
      context.lineWidth = 1.2;
      for (const normal of normals) {
        const [a, b, c] = lineOf(normal), square = a * a + b * b;
        if (square < 1e-12) continue;
        const [x, y, far] = [(-a * c) / square, (-b * c) / square, (2 * (width + height)) / scale / Math.sqrt(square)];
        context.beginPath();
        context.moveTo(...at([x - b * far, y + a * far]));
        context.lineTo(...at([x + b * far, y - a * far]));
        context.stroke();
      }
    });
    context.globalAlpha = 1;
    // The true neighbours: found ones in a full ring, missed ones in a broken one.
    for (const row of this.nearest) {
      const [x, y] = at(this.points[row]), found = this.seen[row];
      this.paintImage(context, row, [x, y], side * 0.9);
      context.setLineDash(found ? [] : [4, 3]);
      for (const [colour, line] of [["white", 5], [found ? RIGHT : WRONG, 2.5]]) {
        Object.assign(context, { strokeStyle: colour, lineWidth: line });
        circle(context, [x, y], side * 0.72);
        context.stroke();
      }
    }
    context.setLineDash([]);
    this.paintStar(context, ...at(query), side);
  }

  paintImage(context, row, [x, y], side) {
    const { tile, columns } = this.data;
    if (!this.sprite.complete || !this.sprite.naturalWidth) return;
    const [left, top] = [(row % columns) * tile, Math.floor(row / columns) * tile];
    context.drawImage(this.sprite, left, top, tile, tile, x - side / 2, y - side / 2, side, side);
  }

  paintStar(context, x, y, side) {
    if (this.self >= 0) {
      this.paintImage(context, this.self, [x, y], side * 1.5);
      Object.assign(context, { strokeStyle: INK, lineWidth: 3 });
      context.strokeRect(x - side * 0.75, y - side * 0.75, side * 1.5, side * 1.5);
      y -= side * 1.15;
    }
    context.beginPath();
    for (let i = 0; i < 10; i++) {
      const far = side * (i % 2 ? 0.2 : 0.5);
      context.lineTo(x + far * Math.sin((i * Math.PI) / 5), y - far * Math.cos((i * Math.PI) / 5));
    }
    context.closePath();
    Object.assign(context, { fillStyle: INK, strokeStyle: "white", lineWidth: 2 });
    context.stroke();
    context.fill();
  }

  /** Paint axes from 0 to 1, and return a function that turns shares of them into pixels. */
  axes(context, width, height, title, below, ticks) {
    const [left, right, top, bottom] = [38, width - 12, 24, height - 34];
    const at = (x, y) => [left + x * (right - left), bottom - y * (bottom - top)];
    Object.assign(context, { fillStyle: INK, strokeStyle: "#d5dae0", lineWidth: 1, textAlign: "left" });
    context.font = "bold 12px system-ui, sans-serif";
    context.fillText(title, left, 14);
    context.font = "11px system-ui, sans-serif";
    for (const share of [0, 0.5, 1]) {
      context.beginPath();
      context.moveTo(...at(0, share));
      context.lineTo(...at(1, share));
      context.stroke();
      Object.assign(context, { fillStyle: "#52606d", textAlign: "right" });
      context.fillText(percent(share), left - 5, at(0, share)[1] + 4);
      context.textAlign = share === 1 ? "right" : share ? "center" : "left";
      context.fillText(ticks[2 * share], at(share, 0)[0], bottom + 14);
    }
    context.textAlign = "center";
    context.fillText(below, (left + right) / 2, height - 6);
    return at;
  }

  paintChart() {
    const [context, width, height] = this.canvas(this.chart), { found, seen } = this.average;
    const ticks = ["0%", "50%", "100%"];
    const at = this.axes(context, width, height, "Found against seen, on average", "share of images seen", ticks);
    const spot = (x, y, size, colour) => {
      context.fillStyle = colour;
      circle(context, at(x, y), size);
      context.fill();
    };
    for (const one of this.trail.slice(-40)) spot(one.seen, one.found, 3, "#b8c2cc");
    spot(seen, found, 6, BLUE);
    const [x, y] = at(seen, found);
    Object.assign(context, { fillStyle: INK, textAlign: seen > 0.5 ? "right" : "left" });
    const text = `${percent(found)} found, ${percent(seen)} seen`;
    context.fillText(text, x + (seen > 0.5 ? -10 : 10), found > 0.9 ? y + 16 : y - 8);
    this.chart.setAttribute("aria-label", `Share of the ten nearest found against share of images seen: ${text}.`);
  }

  paintAngles() {
    const [context, width, height] = this.canvas(this.angles), { bits, tables, centred } = this.settings;
    const { near, all } = this.space.histograms(this.tables.centre), ticks = ["0°", "90°", "180°"];
    const below = `angle, seen from the ${centred ? "mean" : "origin"}`;
    const at = this.axes(context, width, height, "The S-curve: chance to share a bucket", below, ticks);
    const most = Math.max(...near, ...all), bins = near.length;
    near.forEach((share, i) => {
      const [x, y] = at(i / bins, share / most), wide = at(1 / bins, 0)[0] - at(0, 0)[0], bottom = at(0, 0)[1];
      context.fillStyle = "#2f669099";
      context.fillRect(x, y, wide - 1, bottom - y);
      Object.assign(context, { strokeStyle: PROBE, lineWidth: 1.5 });
      const top = at(0, all[i] / most)[1];
      if (all[i]) context.strokeRect(x + 0.5, top, wide - 2, bottom - top);
    });
    Object.assign(context, { strokeStyle: INK, lineWidth: 2 });
    context.beginPath();
    for (let i = 0; i <= 90; i++) context.lineTo(...at(i / 90, curve((i / 90) * Math.PI, this.settings)));
    context.stroke();
    Object.assign(context, { textAlign: "right", fillStyle: BLUE });
    context.fillText("■ the ten nearest", width - 14, 38);
    context.fillStyle = "#9a6400";
    context.fillText("□ all images", width - 14, 53);
    const about = `The S-curve of ${bits} bits and ${tables} tables, over angles to the ten nearest and to all images.`;
    this.angles.setAttribute("aria-label", about);
  }

  /** Show the ten nearest below the map: buttons that make one the query, or answer a task. */
  paintRow() {
    const shown = this.nearest.map((row) => `${row} ${this.seen[row]}`).join();
    if (shown === this.shown || !this.sprite.complete) return;
    this.shown = shown;
    while (this.row.children.length < this.nearest.length) {
      const size = { width: this.data.tile, height: this.data.tile };
      const button = make("button", { type: "button" }, make("canvas", size), make("span"));
      button.onclick = () => {
        const step = STEPS[this.step];
        step?.clicked ? this.judge(step.clicked(this, button.row)) : this.pick(button.row);
      };
      this.row.append(button);
    }
    this.nearest.forEach((row, i) => {
      const button = this.row.children[i], found = this.seen[row], name = this.data.names[row];
      button.row = row;
      button.className = found ? "found" : "missed";
      button.title = name;
      button.setAttribute("aria-label", `${name}, ${found ? "found" : "missed"}`);
      button.lastChild.textContent = found ? "✓" : "✗";
      const context = button.firstChild.getContext("2d"), { tile } = this.data;
      this.paintImage(context, row, [tile / 2, tile / 2], tile);
    });
  }
}

/** Show data in an element of a page. */
export function explore(root, data) {
  return new App(root, data);
}

/** The widget: see anywidget. */
export default {
  render({ model, el }) {
    const app = explore(el, model.get("data"));
    return () => app.watch.disconnect();
  },
};
