// Times, as times.js writes them; previews, or why there is none.
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
