// The viewer: pictures of whole numbers on canvases that share place, zoom, contrast and colors.
"use strict";

const COLORS = {
  gray: "000000 ffffff",
  viridis: "440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26828e 21918c 1fa088 28ae80 3fbc73 5ec962 84d44b addc30 d8e219 fde725",
  inferno: "000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754 d24644 e45a31 f1731d f98e09 fcac11 f9cb35 f2ea69 fcffa4",
  twilight: "e2d9e2 c4ced4 95b5c7 7297c1 6276ba 5e51ad 592a8f 45135c 2f1436 4a1342 741e4f 983550 b25652 c27c63 cca389 d8c7be e2d9e2",
};
const NOT_SCANNED = 0xff6b6b6b;
const UNITS = { amplitude: "", phase: " rad" };
const LARGEST_ZOOM = 64; // screen pixels for a pixel

// 256 colors as the canvas stores them, between the given ones.
function colorTable(name) {
  const given = COLORS[name].split(" ").map((text) => [0, 2, 4].map((at) => parseInt(text.slice(at, at + 2), 16)));
  const table = new Uint32Array(256);
  for (let n = 0; n < 256; n++) {
    const at = (n / 255) * (given.length - 1), low = Math.min(Math.floor(at), given.length - 2), part = at - low;
    const [r, g, b] = given[low].map((value, channel) => Math.round(value + (given[low + 1][channel] - value) * part));
    table[n] = 0xff000000 | (b << 16) | (g << 8) | r;
  }
  return table;
}

function plain(value, digits = 3) {
  return Number.isFinite(value) ? String(Number(value.toPrecision(digits))) : "";
}

function lengthText(meters, digits = 3) {
  const size = Math.abs(meters);
  return size >= 1e-6 ? `${plain(meters * 1e6, digits)} µm` : `${plain(meters * 1e9, digits)} nm`;
}

// One picture: numbers, and how they are read. `bytes`: the high bytes of all pixels, then the low ones.
class Picture {
  constructor(kind, bytes, view) {
    const [rows, columns] = view.shape;
    const count = rows * columns;
    if (bytes.length !== 2 * count) throw new Error("The picture does not have the size that its figures name.");
    Object.assign(this, { kind, rows, columns, pixel: view.pixel_size_m }, view[kind]);
    this.numbers = new Uint16Array(count);
    for (let n = 0; n < count; n++) this.numbers[n] = (bytes[n] << 8) | bytes[count + n];
  }

  get height() { return this.rows * this.pixel[0]; } // meters
  get width() { return this.columns * this.pixel[1]; }

  // The value of a pixel; null where nothing was scanned. `limit` is the sign of what is beyond the numbers.
  at(row, column) {
    if (row < 0 || column < 0 || row >= this.rows || column >= this.columns) return null;
    const n = this.numbers[row * this.columns + column];
    if (n === 0) return null;
    return { value: this.low + ((n - 1) / 65534) * (this.high - this.low), limit: n === 65535 ? "≥ " : n === 1 ? "≤ " : "" };
  }

  // The picture in colors, painted anew when range or colors differ from the last ones.
  painted(black, white, colors) {
    const key = `${black} ${white} ${colors}`;
    if (this.key === key) return this.canvas;
    const table = colorTable(colors), lookup = new Uint32Array(65536);
    const scale = (this.high - this.low) / 65534, range = Math.max(white - black, 1e-12);
    for (let n = 1; n < 65536; n++) {
      const part = (this.low + (n - 1) * scale - black) / range;
      lookup[n] = table[Math.max(0, Math.min(255, Math.round(part * 255)))];
    }
    lookup[0] = NOT_SCANNED;
    this.canvas ||= Object.assign(document.createElement("canvas"), { width: this.columns, height: this.rows });
    const context = this.canvas.getContext("2d");
    const image = context.createImageData(this.columns, this.rows), pixels = new Uint32Array(image.data.buffer);
    for (let n = 0; n < pixels.length; n++) pixels[n] = lookup[this.numbers[n]];
    context.putImageData(image, 0, 0);
    this.key = key;
    return this.canvas;
  }
}

// What all panels share: `scale` is screen pixels for a meter; x and y, meters from a picture's middle, are in the
// middle of the panel; `pointer` is where a value is read.
class Viewer {
  constructor(place, { onKey, onChange }) {
    this.place = place;
    this.onKey = onKey;
    this.onChange = onChange;
    this.panels = [];
    this.x = this.y = 0;
    this.scale = null; // null: as large as fits
    this.pointer = null;
    this.reference = {}; // by kind, the picture whose automatic range all take: compared ones look alike
    this.contrast = {
      amplitude: { black: null, white: null, colors: "gray" },
      phase: { black: null, white: null, colors: "gray" },
    };
    this.observer = new ResizeObserver(() => this.draw());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  // Shows pictures: a list of { picture, title }. Panels that there are already stay, with the focus.
  show(shown) {
    while (this.panels.length > shown.length) this.remove(this.panels.pop());
    while (this.panels.length < shown.length) this.panels.push(this.add());
    shown.forEach(({ picture, title }, number) => {
      const panel = this.panels[number];
      panel.picture = picture;
      panel.title = title;
      panel.caption.textContent = title;
    });
    this.draw();
  }

  add() {
    const figure = document.createElement("figure"), caption = document.createElement("figcaption");
    const canvas = document.createElement("canvas"), readout = document.createElement("output");
    readout.className = "readout";
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-describedby", "keys");
    figure.append(caption, canvas, readout);
    this.place.append(figure);
    const panel = { figure, caption, canvas, readout, touches: new Map() };
    canvas.addEventListener("pointerdown", (event) => this.down(panel, event));
    canvas.addEventListener("pointermove", (event) => this.move(panel, event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => panel.touches.delete(event.pointerId));
    canvas.addEventListener("pointerleave", () => { this.pointer = null; this.drawSoon(); });
    canvas.addEventListener("wheel", (event) => this.wheel(panel, event), { passive: false });
    canvas.addEventListener("keydown", (event) => this.key(panel, event));
    canvas.addEventListener("dblclick", () => this.fit());
    this.observer.observe(canvas);
    return panel;
  }

  remove(panel) {
    this.observer.unobserve(panel.canvas);
    panel.figure.remove();
  }

  fitting(panel) {
    const { picture, canvas } = panel;
    return Math.min(canvas.clientWidth / picture.width, canvas.clientHeight / picture.height);
  }

  scaleOf(panel) {
    return this.scale ?? this.fitting(panel);
  }

  // Zooms by a factor; the place at `at` (screen pixels from the panel's middle) stays where it is.
  zoom(factor, panel = this.panels[0], at = { x: 0, y: 0 }) {
    if (!panel?.picture) return;
    const before = this.scaleOf(panel), smallest = this.fitting(panel) / 2;
    const largest = (LARGEST_ZOOM) / Math.min(...panel.picture.pixel);
    const after = Math.max(smallest, Math.min(largest, before * factor));
    this.x += at.x / before - at.x / after;
    this.y += at.y / before - at.y / after;
    this.scale = after;
    this.drawSoon();
  }

  fit() {
    this.scale = null;
    this.x = this.y = 0;
    this.drawSoon();
  }

  oneToOne() {
    const panel = this.panels[0];
    if (!panel?.picture) return;
    this.scale = 1 / panel.picture.pixel[1] / devicePixelRatio;
    this.drawSoon();
  }

  // Meters from the middle of the picture, of a place in a panel.
  placeOf(panel, event) {
    const box = panel.canvas.getBoundingClientRect(), scale = this.scaleOf(panel);
    const at = { x: event.clientX - box.left - box.width / 2, y: event.clientY - box.top - box.height / 2 };
    return { at, x: this.x + at.x / scale, y: this.y + at.y / scale };
  }

  down(panel, event) {
    if (!panel.picture) return;
    panel.canvas.focus({ preventScroll: true });
    panel.canvas.setPointerCapture(event.pointerId);
    panel.touches.set(event.pointerId, { x: event.clientX, y: event.clientY });
  }

  move(panel, event) {
    if (!panel.picture) return;
    const last = panel.touches.get(event.pointerId);
    if (last) {
      const scale = this.scaleOf(panel), others = [...panel.touches].filter(([id]) => id !== event.pointerId);
      const now = { x: event.clientX, y: event.clientY };
      if (others.length) {
        const [, other] = others[0];
        const apart = (point) => Math.max(Math.hypot(point.x - other.x, point.y - other.y), 1);
        this.zoom(apart(now) / apart(last), panel, this.placeOf(panel, event).at);
      } else {
        this.x -= (now.x - last.x) / scale;
        this.y -= (now.y - last.y) / scale;
        this.scale = scale;
      }
      panel.touches.set(event.pointerId, now);
    }
    const { x, y } = this.placeOf(panel, event);
    this.pointer = { x, y };
    this.drawSoon();
  }

  wheel(panel, event) {
    // Without the focus the wheel scrolls the page, as everywhere.
    if (document.activeElement !== panel.canvas && !event.ctrlKey) return;
    event.preventDefault();
    this.zoom(Math.exp(-event.deltaY / 400), panel, this.placeOf(panel, event).at);
  }

  key(panel, event) {
    if (event.ctrlKey || event.altKey || event.metaKey || !panel.picture) return;
    const step = 40 / this.scaleOf(panel);
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.shiftKey && moves[event.key]) {
      this.scale = this.scaleOf(panel);
      this.x += moves[event.key][0] * step;
      this.y += moves[event.key][1] * step;
      this.pointer = { x: this.x, y: this.y };
      this.drawSoon();
    } else if (event.key === "+" || event.key === "=") this.zoom(1.25, panel);
    else if (event.key === "-") this.zoom(0.8, panel);
    else if (event.key === "0") this.fit();
    else if (event.key === "1") this.oneToOne();
    else if (!this.onKey(event.key)) return;
    event.preventDefault();
  }

  range(picture) {
    const { black, white } = this.contrast[picture.kind], automatic = this.reference[picture.kind] || picture;
    return [black ?? automatic.black, white ?? automatic.white];
  }

  drawSoon() {
    this.due ||= requestAnimationFrame(() => this.draw());
  }

  draw() {
    cancelAnimationFrame(this.due);
    this.due = 0;
    for (const panel of this.panels) if (panel.picture) this.drawPanel(panel);
    this.onChange();
  }

  drawPanel(panel) {
    const { canvas, picture } = panel, ratio = devicePixelRatio || 1;
    const width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d"), scale = this.scaleOf(panel) * ratio;
    const [black, white] = this.range(picture), { colors } = this.contrast[picture.kind];
    const source = picture.painted(black, white, colors);
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    context.imageSmoothingEnabled = scale * picture.pixel[1] < 1; // single pixels are seen as such
    context.imageSmoothingQuality = "high";
    const left = width / 2 + (-picture.width / 2 - this.x) * scale, top = height / 2 + (-picture.height / 2 - this.y) * scale;
    context.drawImage(source, left, top, picture.width * scale, picture.height * scale);
    this.drawPointer(context, width, height, scale);
    this.drawBars(context, panel, { width, height, ratio, scale, black, white, colors });
    this.readOut(panel);
    canvas.setAttribute("aria-label", this.described(panel, black, white));
  }

  drawPointer(context, width, height, scale) {
    if (!this.pointer) return;
    const x = width / 2 + (this.pointer.x - this.x) * scale, y = height / 2 + (this.pointer.y - this.y) * scale;
    const size = 12 * (devicePixelRatio || 1);
    for (const [color, line] of [["#000c", size / 3], ["#fff", size / 9]]) {
      context.beginPath();
      context.strokeStyle = color;
      context.lineWidth = line;
      for (const [a, b] of [[-size, -size / 3], [size / 3, size]]) {
        context.moveTo(x + a, y); context.lineTo(x + b, y);
        context.moveTo(x, y + a); context.lineTo(x, y + b);
      }
      context.stroke();
    }
  }

  // Scale bar at the right, colors with their range at the left; on a ground of their own, in any colors.
  drawBars(context, panel, { width, height, ratio, scale, black, white, colors }) {
    const bar = scaleBar(scale, Math.min(110 * ratio, width / 3));
    const size = 13 * ratio, pad = 6 * ratio, thick = 4 * ratio, across = Math.min(90 * ratio, width / 4);
    context.font = `${size}px system-ui, sans-serif`;
    context.textBaseline = "top";
    const labels = `${plain(black)} to ${plain(white)}${UNITS[panel.picture.kind]}`;
    const boxes = [
      { x: width - Math.max(bar.pixels, context.measureText(bar.text).width) - 3 * pad, text: bar.text },
      { x: pad, text: labels },
    ];
    const wide = boxes.map(({ text }, n) => Math.max(n ? across : bar.pixels, context.measureText(text).width) + 2 * pad);
    const tall = size + thick + 3 * pad, y = height - tall - pad;
    boxes.forEach(({ x, text }, n) => {
      context.fillStyle = "#000a";
      context.fillRect(x, y, wide[n], tall);
      context.fillStyle = "#fff";
      context.fillText(text, x + pad, y + pad);
    });
    context.fillRect(boxes[0].x + pad, y + size + 2 * pad, bar.pixels, thick);
    const table = colorTable(colors);
    for (let n = 0; n < across; n++) {
      const color = table[Math.round((n / Math.max(across - 1, 1)) * 255)];
      context.fillStyle = `rgb(${color & 255} ${(color >> 8) & 255} ${(color >> 16) & 255})`;
      context.fillRect(boxes[1].x + pad + n, y + size + 2 * pad, 1.5, thick);
    }
    panel.bar = bar;
  }

  readOut(panel) {
    const { picture } = panel;
    if (!this.pointer) {
      panel.readout.textContent = "";
      return;
    }
    const column = Math.floor((this.pointer.x + picture.width / 2) / picture.pixel[1]);
    const row = Math.floor((this.pointer.y + picture.height / 2) / picture.pixel[0]);
    const found = picture.at(row, column);
    const value = found ? `${found.limit}${plain(found.value, 4)}${UNITS[picture.kind]}` : "not scanned";
    panel.readout.textContent = `x ${lengthText(this.pointer.x + picture.width / 2)}, y ${lengthText(this.pointer.y + picture.height / 2)}: ${value}`;
  }

  described(panel, black, white) {
    const { picture } = panel;
    return `${panel.title}: ${picture.kind} from ${plain(black)} to ${plain(white)}${UNITS[picture.kind]}, ` +
      `${lengthText(picture.width)} wide and ${lengthText(picture.height)} high, scale bar ${panel.bar.text}`;
  }
}

// A bar of a round length, at most so many screen pixels long. `scale`: screen pixels for a meter.
function scaleBar(scale, longest) {
  const wanted = longest / scale, power = 10 ** Math.floor(Math.log10(wanted));
  const meters = Math.max(...[1, 2, 5].map((n) => n * power).filter((size) => size <= wanted * 1.0001));
  return { pixels: meters * scale, text: lengthText(meters, 1) };
}
