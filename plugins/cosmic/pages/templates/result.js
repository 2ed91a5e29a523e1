// Times in the zone that is chosen in Airflow's header, else the viewer's; previews, or why there is none.
"use strict";

function chosenZone() {
  try {
    return JSON.parse(localStorage.getItem("timezone")) || undefined;
  } catch {
    return undefined;
  }
}

function formatter(options) {
  const wanted = { hourCycle: "h23", ...options };
  try {
    return new Intl.DateTimeFormat("en-CA", { ...wanted, timeZone: chosenZone() });
  } catch {
    return new Intl.DateTimeFormat("en-CA", wanted);
  }
}

const dateAndTime = formatter({
  year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit",
  timeZoneName: "short",
});
const timeOfDay = formatter({ hour: "2-digit", minute: "2-digit", second: "2-digit" });

for (const element of document.querySelectorAll("time")) {
  element.title = element.textContent;
  element.textContent = dateAndTime.format(new Date(element.dateTime)).replace(",", "");
}

async function show(figure) {
  const note = figure.querySelector("figcaption");
  let reply, reason;
  try {
    reply = await fetch(figure.dataset.source, { credentials: "same-origin" });
    if (reply.ok) {
      const image = new Image();
      image.alt = figure.dataset.alt;
      image.src = URL.createObjectURL(await reply.blob());
      await image.decode();
      note.remove();
      figure.append(image);
      return;
    }
    reason = (await reply.json()).detail;
  } catch {
    reason = "";
  }
  note.textContent = reason || "The preview could not be fetched: Airflow does not answer.";
  if (reply && reply.status < 500) return;
  const seconds = Number(figure.dataset.tryAgain);
  note.textContent += ` Trying again at ${timeOfDay.format(new Date(Date.now() + seconds * 1000))}.`;
  setTimeout(show, seconds * 1000, figure);
}

document.querySelectorAll("figure[data-source]").forEach(show);
