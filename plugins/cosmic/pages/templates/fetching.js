// Asks the server for figures and pictures of results; an error has words for people.
"use strict";

const KEPT_RESULTS = 10; // in this page's memory

const loaded = new Map();

class Missing extends Error {
  constructor(text, again) {
    super(text);
    this.again = again;
  }
}

async function request(address) {
  let reply;
  try {
    reply = await fetch(address, { credentials: "same-origin" });
  } catch {
    throw new Missing("Airflow does not answer.", true);
  }
  if (reply.ok) return reply;
  let detail = "";
  try {
    ({ detail } = await reply.json());
  } catch {
    // What a proxy says is not for people.
  }
  throw new Missing(String(detail || `Airflow answers with status ${reply.status}.`), reply.status >= 500);
}

// Figures and pictures of a result; they are asked for once.
function result(run, engine) {
  const key = `${run.id} ${engine} ${run.results[engine]}`;
  if (!loaded.has(key)) {
    const address = `${run.address}/${engine}`;
    const version = new URLSearchParams({ of: run.results[engine] }); // a result that was made again is another one
    const figures = request(`${address}/figures.json?${version}`).then((reply) => reply.json());
    const pictures = {};
    loaded.set(key, {
      figures,
      picture: (kind) => pictures[kind] ||= figures.then(async ({ view }) => {
        if (!view) return null;
        const reply = await request(`${address}/picture/${kind}?${version}`);
        return new Picture(kind, new Uint8Array(await reply.arrayBuffer()), view);
      }),
      preview: () => request(`${address}/preview.png?${version}`).then((reply) => reply.blob()),
      forget: () => loaded.delete(key),
    });
    while (loaded.size > KEPT_RESULTS) loaded.delete(loaded.keys().next().value);
  }
  return loaded.get(key);
}
