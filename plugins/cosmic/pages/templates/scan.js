// The page of a scan: which pictures are shown, the part about the run, and what is new.
"use strict";
{
  const element = (id) => document.getElementById(id);
  const KINDS = ["amplitude", "phase"];
  const LOOK_EVERY = 3000, LONGEST = 60000, LOG_EVERY = 15000, BLINK_EVERY = 800;
  let data = JSON.parse(element("scan-data").textContent);
  const chosen = { run: data.chosen, engine: new URLSearchParams(location.search).get("engine") || "" };

  // ---- Runs and results

  const allRuns = () => data.files.flatMap((file) => file.runs.map((run) => ({ file, run })));
  const findRun = (id) => allRuns().find(({ run }) => run.id === id);
  const engines = (run) => Object.keys(run.results);

  // The newest result of a file, in any of its runs.
  function newestOf(file) {
    for (const run of file.runs) if (engines(run).length) return run;
    return file.runs[0];
  }

  // The newest picture of the scan, of any of its files, energies and runs.
  function newestPicture() {
    const made = ({ run }) => Object.values(run.results).map((when) => Date.parse(when));
    const all = allRuns().filter(({ run }) => engines(run).length);
    return all.reduce((a, b) => (a && Math.max(...made(a)) >= Math.max(...made(b)) ? a : b), undefined);
  }

  // Files of the same energy and region: versions of the same frames, such as _cosmic2.
  const versions = ({ energy, region }) => data.files.filter((file) => file.energy === energy && file.region === region);

  function nameOf(file) {
    const energy = file.ev === null ? `energy ${file.energy}` : `${file.ev.toFixed(2)} eV`;
    return regions().length > 1 ? `${energy}, region ${file.region}` : energy;
  }

  const regions = () => [...new Set(data.files.map((file) => file.region))].sort((a, b) => a - b);
  const energies = () => [...new Set(data.files.map((file) => file.energy))].sort((a, b) => a - b);
  const posted = (run) => dateAndMinute.format(new Date(run.posted)).replace(",", "");

  function option(value, text, selected) {
    return new Option(text, value, selected, selected);
  }

  // ---- The picture

  const note = element("viewer-note"), place = element("panels");
  let turn = 0; // which of two blinking results is shown
  let asked = 0;
  let retry, blinking;
  let paused = matchMedia("(prefers-reduced-motion: reduce)").matches;

  const errors = new ErrorPlot(element("errors"), element("error-plot"), element("error-about"));
  const viewer = new Viewer(place, { onKey: pressed, onChange: showContrast });

  function pressed(key) {
    if (key === "ArrowLeft" || key === "ArrowRight") return stepEnergy(key === "ArrowRight" ? 1 : -1);
    if (key === "b" || key === "B") return swap();
    return false;
  }

  // What is to be shown: one result, or two.
  function sources() {
    const own = findRun(chosen.run);
    const found = [{ ...own, engine: chosen.engine }];
    const mode = element("compare").value, [id, engine] = element("other").value.split("|");
    const other = mode && id ? findRun(id) : undefined;
    if (other) found.push({ ...other, engine });
    return { found, mode: other ? mode : "" };
  }

  function titleOf({ file, run, engine }, kind) {
    const parts = [kind, engine];
    if (data.files.length > 1) parts.push(nameOf(file));
    if (versions(file).length > 1 || file.runs.length > 1) parts.push(`run ${run.id}`);
    return parts.join(", ");
  }

  async function showPictures() {
    clearTimeout(retry);
    const mine = ++asked;
    const { found, mode } = sources();
    element("other-picture").hidden = true;
    const kinds = element("shown").value === "both" ? KINDS : [element("shown").value];
    const [own] = found;
    if (!own.run.results[own.engine]) {
      nothingShown();
      const working = own.run.outcome === "active";
      note.textContent = working ? "There is no picture yet: the run goes on." : "This run has left no picture.";
      const other = newestPicture();
      element("other-picture").hidden = !other;
      if (other) element("show-other").textContent = `Show the picture of run ${other.run.id}`;
      return;
    }
    note.textContent = "The picture is being fetched.";
    try {
      const all = await Promise.all(found.map(async (source) => {
        const { picture, figures, preview } = result(source.run, source.engine);
        const pictures = await Promise.all(kinds.map(picture));
        return { source, pictures, figures: await figures, preview: pictures[0] ? null : await preview() };
      }));
      if (mine !== asked) return;
      errors.show(all.map(({ source, figures }) => ({ title: titleOf(source, "error"), figures })));
      showAll(all, kinds, mode);
    } catch (error) {
      if (mine !== asked) return;
      found.forEach(({ run, engine }) => run.results[engine] && result(run, engine).forget());
      nothingShown();
      note.textContent = `The picture cannot be shown: ${error.message}`;
      if (!error.again) return;
      const seconds = data.try_again;
      note.textContent += ` Trying again at ${timeOfDay.format(new Date(Date.now() + seconds * 1000))}.`;
      retry = setTimeout(showPictures, seconds * 1000);
    }
  }

  function nothingShown() {
    viewer.show([]);
    showPreview(null);
    errors.show([]);
    showTools(false);
  }

  // What only works with a picture in full.
  function showTools(isOn) {
    for (const id of ["tools", "contrast", "keys"]) element(id).hidden = !isOn;
  }

  let shownNow = { all: [], kinds: [], mode: "" };

  function showAll(all, kinds, mode) {
    shownNow = { all, kinds, mode };
    const without = all.find(({ preview }) => preview);
    showPreview(without);
    const [{ figures }] = all;
    if (without) {
      viewer.show([]);
      note.textContent = "There is a preview only: the programs at NERSC that made this result are of an older release.";
    } else {
      const binned = figures.view.binned;
      note.textContent = binned > 1
        ? `Binned: each pixel shown is the mean of ${binned} by ${binned} pixels of the result, which is too large for NERSC to hand out at once.`
        : "";
      showPanels();
    }
    showTools(!without);
    for (const box of element("contrast").querySelectorAll("[data-kind]")) box.hidden = !kinds.includes(box.dataset.kind);
    startBlinking();
  }

  function showPanels() {
    const { all, kinds, mode } = shownNow;
    const some = mode === "blink" ? [all[turn % all.length]] : all;
    viewer.reference = Object.fromEntries(kinds.map((kind, number) => [kind, all[0].pictures[number]]));
    place.dataset.columns = some.length > 1 || kinds.length > 1 ? 2 : 1;
    viewer.show(kinds.flatMap((kind, number) =>
      some.map(({ source, pictures }) => ({ picture: pictures[number], title: titleOf(source, kind) }))));
  }

  let previewAddress;

  function showPreview(shown) {
    place.querySelectorAll("figure.preview").forEach((figure) => figure.remove());
    if (previewAddress) URL.revokeObjectURL(previewAddress);
    previewAddress = undefined;
    if (!shown) return;
    previewAddress = URL.createObjectURL(shown.preview);
    const figure = document.createElement("figure");
    figure.className = "preview";
    const image = Object.assign(new Image(), { src: previewAddress, alt: `Amplitude and phase, ${shown.source.engine}` });
    figure.append(image);
    place.append(figure);
  }

  function startBlinking() {
    clearInterval(blinking);
    const isOn = shownNow.mode === "blink";
    element("blink-control").hidden = !isOn;
    element("pause").textContent = paused ? "Blink" : "Pause";
    if (isOn && !paused) blinking = setInterval(swap, BLINK_EVERY);
  }

  function swap() {
    if (shownNow.mode !== "blink") return false;
    turn++;
    showPanels();
    return true;
  }

  element("show-other").addEventListener("click", () => {
    choose(newestPicture().run);
    element("run-choice").focus();
  });
  element("swap").addEventListener("click", () => { paused = true; startBlinking(); swap(); });
  element("pause").addEventListener("click", () => { paused = !paused; startBlinking(); });
  element("zoom-in").addEventListener("click", () => viewer.zoom(1.5));
  element("zoom-out").addEventListener("click", () => viewer.zoom(1 / 1.5));
  element("fit").addEventListener("click", () => viewer.fit());
  element("one-to-one").addEventListener("click", () => viewer.oneToOne());
  element("shown").addEventListener("change", showPictures);
  element("other").addEventListener("change", showPictures);
  element("compare").addEventListener("change", () => { turn = 0; showChoices(); showPictures(); });

  // ---- Contrast

  const pictureOf = (kind) => viewer.panels.map(({ picture }) => picture).find((picture) => picture?.kind === kind);

  function showContrast() {
    for (const kind of KINDS) {
      const picture = pictureOf(kind);
      if (!picture) continue;
      const [black, white] = viewer.range(picture);
      const part = (value) => Math.round(((value - picture.low) / (picture.high - picture.low)) * 1000);
      for (const [end, value] of [["black", black], ["white", white]]) {
        const slider = element(`${kind}-${end}`);
        if (slider !== document.activeElement) slider.value = part(value);
        slider.setAttribute("aria-valuetext", plain(value) + UNITS[kind]);
      }
      element(`${kind}-range`).textContent = `${plain(black)} to ${plain(white)}${UNITS[kind]}`;
    }
  }

  for (const kind of KINDS) {
    for (const end of ["black", "white"]) {
      element(`${kind}-${end}`).addEventListener("input", (event) => {
        const picture = pictureOf(kind);
        if (!picture) return;
        const [black, white] = viewer.range(picture);
        Object.assign(viewer.contrast[kind], { black, white });
        viewer.contrast[kind][end] = picture.low + (event.target.value / 1000) * (picture.high - picture.low);
        viewer.drawSoon();
      });
    }
    element(`${kind}-auto`).addEventListener("click", () => {
      Object.assign(viewer.contrast[kind], { black: null, white: null });
      viewer.drawSoon();
    });
    element(`${kind}-map`).addEventListener("change", (event) => {
      viewer.contrast[kind].colors = event.target.value;
      viewer.drawSoon();
    });
  }

  // ---- The choice of energy, region, run and engine

  function showChoices() {
    const own = findRun(chosen.run);
    if (!own.run.results[chosen.engine]) chosen.engine = engines(own.run)[0] || chosen.engine || "";
    const some = energies(), slider = element("energy");
    element("energy-control").hidden = some.length < 2;
    slider.max = some.length - 1;
    slider.value = some.indexOf(own.file.energy);
    const text = `${nameOf({ ...own.file, region: own.file.region })} (${some.indexOf(own.file.energy) + 1} of ${some.length})`;
    element("energy-shown").textContent = text;
    slider.setAttribute("aria-valuetext", text);
    element("region-control").hidden = regions().length < 2;
    element("region").replaceChildren(...regions().map((region) => option(region, region, region === own.file.region)));
    element("run-choice").replaceChildren(...versions(own.file).flatMap(({ runs }) => runs).map((run) =>
      option(run.id, `${run.id}, ${posted(run)}${engines(run).length ? "" : " (no picture)"}`, run.id === chosen.run)));
    const list = engines(own.run);
    element("engine-control").hidden = list.length < 2;
    element("engine").replaceChildren(...list.map((engine) => option(engine, engine, engine === chosen.engine)));
    showOthers(own);
  }

  function showOthers(own) {
    const compared = element("other").value;
    const others = data.files.flatMap((file) => file.runs.flatMap((run) => engines(run).map((engine) => ({ file, run, engine }))));
    const fitting = others.filter(({ run, engine }) => run.id !== own.run.id || engine !== chosen.engine);
    element("other-control").hidden = !element("compare").value;
    element("compare").disabled = fitting.length === 0;
    element("other").replaceChildren(...fitting.map(({ file, run, engine }) =>
      option(`${run.id}|${engine}`, `${nameOf(file)}, ${engine}, run ${run.id}`, `${run.id}|${engine}` === compared)));
  }

  function choose(run, engine = chosen.engine) {
    chosen.run = run.id;
    chosen.engine = engine;
    showChoices();
    const query = new URLSearchParams({ run: chosen.run });
    if (chosen.engine) query.set("engine", chosen.engine);
    history.replaceState(null, "", `?${query}`);
    showPictures();
    showRun();
  }

  function chooseFile(energy, region) {
    const of = data.files.filter((file) => file.energy === energy);
    const file = of.find((some) => some.region === region) || of[0];
    if (file) choose(newestOf(file));
  }

  function stepEnergy(step) {
    const some = energies(), own = findRun(chosen.run).file;
    const next = some[some.indexOf(own.energy) + step];
    if (next !== undefined) chooseFile(next, own.region);
    return some.length > 1;
  }

  element("energy").addEventListener("input", (event) => chooseFile(energies()[event.target.value], findRun(chosen.run).file.region));
  element("region").addEventListener("change", (event) => chooseFile(findRun(chosen.run).file.energy, Number(event.target.value)));
  element("run-choice").addEventListener("change", (event) => choose(findRun(event.target.value).run));
  element("engine").addEventListener("change", (event) => choose(findRun(chosen.run).run, event.target.value));

  // ---- The part about the run

  const details = element("run");
  let detailsAsked = 0;

  async function showRun() {
    const mine = ++detailsAsked;
    details.setAttribute("aria-busy", "true");
    let html;
    try {
      html = await (await request(`${data.base}/run?${new URLSearchParams({ run: chosen.run })}`)).text();
    } catch (error) {
      html = "";
      if (mine === detailsAsked) details.prepend(Object.assign(document.createElement("p"), { textContent: error.message }));
    }
    if (mine !== detailsAsked) return;
    details.setAttribute("aria-busy", "false");
    if (!html) return;
    const open = [...details.querySelectorAll("details.log[open]")].map((log) => log.dataset.log);
    const fresh = new DOMParser().parseFromString(html, "text/html");
    for (const id of ["news", "run"]) {
      element(id).replaceChildren(...fresh.getElementById(id).childNodes);
      showTimes(element(id));
    }
    watchLogs(open);
  }

  function watchLogs(open = []) {
    for (const log of details.querySelectorAll("details.log")) {
      log.addEventListener("toggle", () => log.open && showLog(log));
      if (open.includes(log.dataset.log)) log.open = true;
    }
  }

  async function showLog(log) {
    clearTimeout(log.timer);
    if (!log.open || !log.isConnected) return;
    const text = log.querySelector("pre");
    try {
      const found = await (await request(log.dataset.log)).json();
      const atEnd = text.scrollTop + text.clientHeight >= text.scrollHeight - 4;
      text.textContent = found.text ?? found.why_not;
      if (atEnd) text.scrollTop = text.scrollHeight;
    } catch (error) {
      text.textContent = error.message;
    }
    if (log.dataset.live && !document.hidden) log.timer = setTimeout(showLog, LOG_EVERY, log);
  }

  // ---- What is new

  let etag = "", failures = 0, answered = Date.now(), timer;
  const keyOf = (found) => JSON.stringify([found?.run.outcome, found?.run.tasks, found?.run.results]);

  function adopt(news) {
    const before = findRun(chosen.run);
    const had = JSON.stringify(before?.run.results), outcome = before?.run.outcome;
    const wasNewest = newest(data)?.id === chosen.run;
    const key = keyOf(before);
    data = { ...news, chosen: chosen.run };
    showState();
    const now = findRun(chosen.run);
    if (!now || (wasNewest && newest(data).id !== chosen.run)) return choose(newest(data));
    showChoices();
    if (keyOf(now) !== key) showRun();
    if (JSON.stringify(now.run.results) !== had || now.run.outcome !== outcome) showPictures();
  }

  const newest = (some) => some.files.flatMap((file) => file.runs).reduce((a, b) => (a && a.posted >= b.posted ? a : b), undefined);

  function showState() {
    element("state").className = data.state.name;
    const shown = [[element("state"), data.state.words], [element("doing"), findRun(chosen.run)?.run.words || []]];
    for (const [place, words] of shown) {
      const text = words.map((word) => (typeof word === "string" ? word : minuteOfDay.format(new Date(word.time)))).join("");
      const sentence = place?.id === "doing" ? text.charAt(0).toUpperCase() + text.slice(1) : text;
      if (place && text && place.textContent !== sentence) place.textContent = sentence;
    }
  }

  async function look() {
    clearTimeout(timer);
    if (!document.hidden) {
      try {
        const reply = await fetch(`${data.base}/data`, { credentials: "same-origin", headers: etag ? { "If-None-Match": etag } : {} });
        if (reply.status === 401) return location.reload();
        if (reply.status === 200) {
          etag = reply.headers.get("ETag") || "";
          adopt(await reply.json());
        } else if (reply.status !== 304) throw new Error((await reply.json()).detail);
        failures = 0;
        answered = Date.now();
        element("trouble").hidden = true;
      } catch (error) {
        failures++;
        const why = error.name === "Error" ? error.message : "Airflow does not answer.";
        element("trouble").textContent = `${why} This page is as of ${timeOfDay.format(answered)}. It is tried again.`;
        element("trouble").hidden = failures < 2;
      }
    }
    timer = setTimeout(look, Math.min(LOOK_EVERY * 2 ** failures, LONGEST));
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return;
    look();
    details.querySelectorAll("details.log[open]").forEach(showLog);
  });

  // ---- Begin

  showChoices();
  showPictures();
  watchLogs();
  timer = setTimeout(look, LOOK_EVERY);
}
